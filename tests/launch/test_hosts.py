"""Two network namespaces joined by a cable stand for two hosts. One host is lost, and comes back or not."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from runs_for_tests import differing, on_ranks, read_checkpoint, tiny_config, train_here, write_tiny

from imago.trainer.runs.checkpoint import list_checkpoints

ROOT = Path(__file__).parents[2]
TIMEOUT = 240
SETTINGS = {'total_kimg': 0.6, 'checkpoint': {'interval_kimg': 0.06}, 'log': {'interval_kimg': 0.12, 'keys': True}}
HEAD, OTHER = '10.77.0.1', '10.77.0.2'


def ip(*arguments):
    return subprocess.run(['ip', *arguments], capture_output=True, text=True, check=True)


@pytest.fixture
def hosts():
    """Names of two namespaces, HEAD and OTHER in a network of their own."""
    names = [f'imago{os.getpid()}{letter}' for letter in 'ab']
    try:
        ip('netns', 'add', names[0])
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f'network namespaces are not allowed here: {getattr(error, "stderr", None) or error}')
    try:
        ip('netns', 'add', names[1])
        cable = [f'v{os.getpid()}{letter}' for letter in 'ab']
        ip('link', 'add', cable[0], 'netns', names[0], 'type', 'veth', 'peer', cable[1], 'netns', names[1])
        for name, end, address in zip(names, cable, (HEAD, OTHER), strict=True):
            ip('-n', name, 'addr', 'add', f'{address}/24', 'dev', end)
            for device in 'lo', end:
                ip('-n', name, 'link', 'set', device, 'up')
        yield names
    finally:
        for name in names:
            with suppress(subprocess.CalledProcessError):   # the second may not have been made
                ip('netns', 'del', name)


class Nodes:
    """`imago launch node` on each host; what is left of them is killed at the end."""

    def __init__(self, hosts, config, nodes):
        self._hosts, self._all = hosts, []
        self._command = [sys.executable, '-m', 'imago.launch.node', str(config), '--nodes', nodes, '--gpus-per-node', '1',
                         '--rendezvous', f'{HEAD}:29400']

    def __enter__(self):
        return self

    def start(self, number):
        # exec: the process is launch.node itself
        command = ['ip', 'netns', 'exec', self._hosts[number], *self._command]
        self._all.append(subprocess.Popen(command, cwd=ROOT))
        return self._all[-1]

    def __exit__(self, *_):
        for process in self._all:
            process.kill()
            process.wait()


def records(run_dir, rank):
    """Return {nimg: keys} of a rank. If a step was run again, the last time counts."""
    path, found = run_dir / f'keys-rank{rank}.jsonl', {}
    for line in path.read_text().splitlines() if path.exists() else ():
        with suppress(ValueError):   # torn by a kill; its step is run again
            record = json.loads(line)
            found[record['nimg']] = record['keys']
    return found


def keys_of_steps(run_dir):
    """Return {nimg: sorted keys of the whole batch}. A step that rank 0 ran alone needs no record of rank 1."""
    first, second = records(run_dir, 0), records(run_dir, 1)
    return {nimg: sorted(keys + (second[nimg] if len(keys) < 12 else [])) for nimg, keys in first.items()}


def wait_for_steps(run_dir, count, *processes):
    deadline = time.monotonic() + TIMEOUT
    while len(records(run_dir, 1)) < count:
        assert all(process.poll() is None for process in processes) and time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope='module')
def undisturbed(shards, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp('undisturbed') / 'run'
    on_ranks(2, train_here, tiny_config(shards, run_dir, **SETTINGS))
    return run_dir


def newest(run_dir):
    return list_checkpoints(run_dir / 'checkpoints')[-1]


def test_a_host_that_was_lost_comes_back_and_the_bits_are_the_same(hosts, undisturbed, shards, tmp_path, capfd):
    run_dir = tmp_path / 'run'
    with Nodes(hosts, write_tiny(shards, run_dir, tmp_path / 'c.yaml', **SETTINGS), '2') as nodes:
        head, other = nodes.start(0), nodes.start(1)
        wait_for_steps(run_dir, 12, head, other)
        other.kill()
        lost = time.monotonic()
        again = nodes.start(1)
        assert (head.wait(TIMEOUT), again.wait(TIMEOUT)) == (0, 0)
    print(f'lost and brought back: done {time.monotonic() - lost:.0f} s after')
    assert not differing(read_checkpoint(newest(run_dir)), read_checkpoint(newest(undisturbed)))
    assert keys_of_steps(run_dir) == keys_of_steps(undisturbed)
    told = capfd.readouterr()
    assert 'resumed from' in told.out and 'Traceback' not in told.err, told.err


def test_an_elastic_run_goes_on_without_a_host_in_the_same_order(hosts, undisturbed, shards, tmp_path):
    run_dir = tmp_path / 'run'
    with Nodes(hosts, write_tiny(shards, run_dir, tmp_path / 'c.yaml', **SETTINGS), '1:2') as nodes:
        head, other = nodes.start(0), nodes.start(1)
        wait_for_steps(run_dir, 12, head, other)
        other.kill()
        assert head.wait(TIMEOUT) == 0
    assert int(newest(run_dir).name) == 600
    assert {len(keys) for keys in records(run_dir, 0).values()} == {6, 12}   # first with the other, then alone
    assert keys_of_steps(run_dir) == keys_of_steps(undisturbed)
