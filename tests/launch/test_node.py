"""What a node does with signals, and how its exit status tells a finished run from one to go on with."""

import os
import signal
import socket
import subprocess
import sys
import time
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

import pytest
from runs_for_tests import tiny_config, write_tiny

from imago.launch.cluster import load_run, run_parser
from imago.launch.node import finished, main, meeting_point, node_range
from imago.launch.torchrun import STOPPED

ROOT = Path(__file__).parents[2]
TIMEOUT = 120


@pytest.mark.parametrize('names, expected', [
    ([], False),
    (['000000000036'], False),
    (['000000000036', '000000000048'], True),
    (['000000000060'], True),
    (['.writing-000000000048'], False),
])
def test_a_run_is_finished_by_a_whole_checkpoint_of_its_last_image(tmp_path, names, expected):
    for name in names:
        (tmp_path / 'checkpoints' / name).mkdir(parents=True)
    assert finished(tiny_config('data', tmp_path)) == expected


def test_nodes_times_gpus_are_the_ranks(shards, tmp_path):
    path = write_tiny(shards, tmp_path / 'run', tmp_path / 'c.yaml')
    parse = run_parser('imago launch node', 'test').parse_args
    assert load_run(parse([str(path), '--nodes', '2', '--gpus-per-node', '2'])).batch == 12
    with pytest.raises(ValueError, match='not a multiple of the 8 ranks'):
        load_run(parse([str(path), '--nodes', '4', '--gpus-per-node', '2']))


def start_node(config, port, **environment):
    return subprocess.Popen([sys.executable, '-m', 'imago.launch.node', str(config), '--nodes', '2', '--gpus-per-node', '1',
                             '--rendezvous', f'localhost:{port}'], cwd=ROOT, env=os.environ | environment)


def wait_until(condition, process):
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def test_a_signal_before_there_are_ranks_stops_the_node(shards, tmp_path):
    port = free_port()
    process = start_node(write_tiny(shards, tmp_path / 'run', tmp_path / 'c.yaml'), port)
    wait_until(lambda: is_open(port), process)   # its store: torchrun waits for another node, which never comes
    process.send_signal(signal.SIGUSR1)
    assert process.wait(TIMEOUT) == STOPPED


def test_one_node_told_to_stop_stops_all_and_none_takes_the_run_for_finished(shards, tmp_path):
    config, port = write_tiny(shards, tmp_path / 'run', tmp_path / 'c.yaml', total_kimg=1000), free_port()
    # what the training operator of Kubernetes sets, which is meant for other launchers
    operator = {'WORLD_SIZE': '2', 'MASTER_ADDR': 'elsewhere', 'MASTER_PORT': '1', 'PET_NNODES': '3',
                'PET_NPROC_PER_NODE': 'gpu', 'PET_MASTER_ADDR': 'elsewhere', 'PET_MASTER_PORT': '1'}
    nodes = [start_node(config, port, RANK=str(rank), PET_NODE_RANK=str(rank), **operator) for rank in (0, 1)]
    keys = tmp_path / 'run' / 'keys-rank1.jsonl'
    wait_until(lambda: keys.exists() and keys.read_text().count('\n') >= 3, nodes[0])
    nodes[1].terminate()
    assert [node.wait(TIMEOUT) for node in nodes] == [STOPPED, STOPPED]
    assert any((tmp_path / 'run' / 'checkpoints').glob('0*'))


def test_bad_input_is_one_line_and_status_2(shards, tmp_path):
    path = write_tiny(shards, tmp_path / 'run', tmp_path / 'c.yaml')
    told = subprocess.run([sys.executable, '-m', 'imago.launch.cli', 'launch', 'node', str(path), 'batch=18', '--nodes', '1',
                           '--gpus-per-node', '2', '--rendezvous', 'localhost:1'], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 2
    assert told.stderr.startswith('imago launch node: error: batch=18 is not') and told.stderr.count('\n') == 1


def test_local_is_train_on_several_ranks(shards, tmp_path):
    path = write_tiny(shards, tmp_path / 'run', tmp_path / 'c.yaml')
    command = [sys.executable, '-m', 'imago.launch.cli', 'launch', 'local', str(path)]
    told = subprocess.run([*command, '--nproc', '2', 'micro_batch=12'], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 2 and 'batch=12 is not a multiple of 2 ranks x micro_batch=12' in told.stderr
    told = subprocess.run([*command, '--nproc', '0'], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 2
    assert told.stderr == 'imago launch local: error: argument --nproc: 0 is no whole number from 1 to 1024\n'


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def is_open(port):
    with socket.socket() as probe:
        return probe.connect_ex(('127.0.0.1', port)) == 0


@pytest.mark.parametrize('text, counts', [('2', [2]), ('1:2', [1, 2]), ('2:4', [2, 3, 4])])
def test_elastic_runs_are_checked_for_each_number_of_nodes(text, counts):
    assert list(node_range(text)) == counts


@pytest.mark.parametrize('text', ['0', '2:1', '0:2', '1:', 'two', '1:2:3', '1:10001', '100000000', '\u0663', '9' * 5000])
def test_nodes_that_are_no_range_are_refused(text):
    with pytest.raises(ArgumentTypeError, match='not of the form N or MIN:MAX'):
        node_range(text)


def test_a_batch_that_does_not_fit_what_may_be_left_is_refused(shards, tmp_path):
    path = write_tiny(shards, tmp_path / 'run', tmp_path / 'c.yaml')
    options = Namespace(config=str(path), overrides=[], nodes=node_range('4:5'), gpus_per_node=1)
    with pytest.raises(ValueError, match='not a multiple of the 5 ranks'):
        load_run(options)


def test_where_the_nodes_meet(monkeypatch):
    monkeypatch.delenv('GLOO_SOCKET_IFNAME', raising=False)
    for left_to_torchrun in 'localhost:1', 'not-known-yet.invalid:1':
        assert meeting_point(left_to_torchrun) == (left_to_torchrun, None)
    monkeypatch.setattr(socket, 'gethostname', lambda: 'run-node-0-0')
    assert meeting_point('run-node-0-0.not-known-yet.invalid:1') == ('localhost:1', None)
    assert meeting_point('run-node-0-0-0.not-known-yet.invalid:1') == ('run-node-0-0-0.not-known-yet.invalid:1', None)
    for wrong in ('host', 'host:', ':1', 'host:port', 'host:0', 'host:65536', 'host:\u0663', 'a b:1', 'a\nb:1', '[::1:1',
                  'x' * 300 + ':1', 'host:' + '9' * 5000):
        with pytest.raises(ValueError, match='not of the form HOST:PORT'):
            meeting_point(wrong)
    assert 'GLOO_SOCKET_IFNAME' not in os.environ


@pytest.mark.parametrize('name', ['', 'a b', 'a\nb', 'x' * 101, '\u00fc'])
def test_an_id_that_torchrun_could_misread_is_refused(shards, tmp_path, capsys, name):
    path = write_tiny(shards, tmp_path / 'run', tmp_path / 'c.yaml')
    with pytest.raises(SystemExit):
        main([str(path), '--nodes', '1', '--gpus-per-node', '1', '--rendezvous', 'localhost:1', '--id', name])
    told = capsys.readouterr().err
    assert told.startswith('imago launch node: error: argument --id') and told.count('\n') == 1
