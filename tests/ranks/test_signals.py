"""Runs that are told to stop, and runs that are killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import psutil
import pytest
from runs_for_tests import (
    differing,
    read_checkpoint,
    tiny_config,
    train_here,
    write_tiny,
)

from imago.trainer.data.manifest import sample_key
from imago.trainer.data.order import Order, batch_indices
from imago.trainer.data.shards import open_dataset
from imago.trainer.ranks import dist
from imago.trainer.runs.checkpoint import list_checkpoints

ROOT = Path(__file__).parents[2]
TIMEOUT = 120


def wait_for(condition, process):
    """Wait until `condition()` holds; fail if the process ends or hangs before that."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, f'ended early with status {process.returncode}'
        assert time.monotonic() < deadline, 'hangs'
        time.sleep(0.005)


def steps_recorded(run_dir, rank=0):
    path = run_dir / f'keys-rank{rank}.jsonl'
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize('number, ranks', [(signal.SIGTERM, 2), (signal.SIGINT, 1), (signal.SIGUSR1, 1)])
def test_a_signal_checkpoints_and_the_same_command_goes_on(shards, tmp_path, number, ranks):
    run_dir = tmp_path / 'run'
    config = write_tiny(shards, run_dir, tmp_path / 'c.yaml', total_kimg=1000, checkpoint={'interval_kimg': 1000})
    command = [sys.executable, '-m', 'imago.launch.cli', 'train', str(config), '--gpus', str(ranks)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: steps_recorded(run_dir, ranks - 1) >= 3, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=TIMEOUT)
    assert 'stopped at' in output and 'the same command goes on' in output, output
    assert 'Traceback' not in output, output
    assert process.returncode == 0, output
    newest, = list_checkpoints(run_dir / 'checkpoints')
    again = subprocess.run([*command, f'total_kimg={(int(newest.name) + 12) / 1000}'], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and f'resumed from {newest}' in again.stdout, again.stderr


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_while_the_run_starts_is_not_lost(shards, tmp_path, number):
    config = write_tiny(shards, tmp_path / 'run', tmp_path / 'c.yaml', total_kimg=1000)
    process = subprocess.Popen([sys.executable, '-m', 'imago.trainer', str(config)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: blocked_signals(process.pid) >> (number - 1) & 1, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0 and 'stopped at 0.012 kimg' in output, output


@pytest.mark.parametrize('whole, more, number', [
    ([], [], signal.SIGTERM), (['dataset.json'], ['--gpus', '2'], signal.SIGUSR1),
    (['dataset.json', 'first'], ['data.workers=1', 'log.grid=[1,1]'], signal.SIGINT)],
    ids=['manifest', 'pictures of two ranks', 'batch of a worker'])
def test_a_signal_while_a_run_waits_for_its_data_ends_it_at_once(shards, tmp_path, whole, more, number):
    """The pipe gives the files in `whole`, among them the first one that the grid of reals needs, and hangs at any other."""
    manifest = open_dataset(shards).manifest
    first = manifest.shards[Order(manifest, 12, 0).locate(0)[0]].name
    files = '|'.join(['none', *whole]).replace('first', first)
    pipe = f'pipe:case {{}} in {files}) cat {shards}/{{}};; *) echo $$ >> {tmp_path}/hanging; sleep 600;; esac'
    config = write_tiny(shards, tmp_path / 'run', tmp_path / 'c.yaml', total_kimg=1000)
    command = [sys.executable, '-m', 'imago.launch.cli', 'train', str(config), f'data.path={pipe}',
               f'data.cache_dir={tmp_path}/cache', *more]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for((tmp_path / 'hanging').exists, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=TIMEOUT)   # the pipe's own limit is at six times a minute
    assert process.returncode == 0 and 'stopped before the first step' in output and 'Traceback' not in output, output
    assert 'cannot be read' not in output, output
    pids = [int(pid) for pid in (tmp_path / 'hanging').read_text().split()]
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=TIMEOUT)
    assert not alive


def test_a_signal_is_not_lost_while_signals_begin_to_be_held():
    """The resource tracker unblocks SIGTERM for a moment."""
    script = """if True:
        import os, signal
        from multiprocessing import resource_tracker
        from imago.trainer.ranks import stop_signals
        start = resource_tracker.ensure_running
        resource_tracker.ensure_running = lambda: (os.kill(os.getpid(), signal.SIGTERM), start())
        stop_signals.hold_signals()
        print(stop_signals.asked_to_stop(), signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, flush=True)
        with stop_signals.StopSignals() as stop:
            print(stop.requested)"""
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ['True', 'True', 'True'], done


def test_a_program_that_a_signal_meets_as_it_begins_goes_with_the_process():
    """The signal comes when the program already runs, but its constructor has not returned it yet."""
    script = """if True:
        import os, signal, subprocess
        from imago.trainer.data.commands import Command
        from imago.trainer.ranks import stop_signals
        start = subprocess.Popen
        def begin(*arguments, **options):
            process = start(*arguments, **options)
            print(process.pid, flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            return process
        subprocess.Popen = begin
        stop_signals.hold_signals()
        try:
            with stop_signals.interruptible():
                Command(['sleep', '600'])
        except stop_signals.StopSignal as stop:
            print(stop)"""
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    pid, told = done.stdout.split('\n', 1)
    assert told == 'SIGTERM came\n' and done.returncode == 0, done
    _, alive = psutil.wait_procs([psutil.Process(int(pid))] if psutil.pid_exists(int(pid)) else [], timeout=TIMEOUT)
    assert not alive


def blocked_signals(pid):
    status = Path(f'/proc/{pid}/status').read_text()
    return int(next(line for line in status.splitlines() if line.startswith('SigBlk:')).split()[1], 16)


def test_a_killed_launcher_leaves_no_rank_behind(shards, tmp_path):
    run_dir = tmp_path / 'run'
    config = write_tiny(shards, run_dir, tmp_path / 'c.yaml', total_kimg=1000)
    command = [sys.executable, '-m', 'imago.launch.cli', 'train', str(config), '--gpus', '2']
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: steps_recorded(run_dir, 1) >= 1, process)
    below = psutil.Process(process.pid).children(recursive=True)
    assert len(below) >= 2   # the ranks of this torchrun
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(below, timeout=TIMEOUT)
    assert not alive


def train_in_child(path, arguments):
    from imago.trainer.tools.train import main
    os.chdir(path)
    sys.exit(main(arguments))


def test_six_kills_skip_and_repeat_nothing(shards, tmp_path):
    """The run is killed after random numbers of steps and in the middle of saves, then compared with a run left alone."""
    rng = random.Random(0)
    run_dir, straight = tmp_path / 'run', tmp_path / 'straight'
    total = 1.2
    settings = {'total_kimg': total, 'checkpoint': {'interval_kimg': 0.036}}
    config = write_tiny(shards, run_dir, tmp_path / 'c.yaml', **settings)
    context = get_context('forkserver')
    context.set_forkserver_preload(['imago.trainer.train'])
    saving = kills = 0
    while kills < 6:
        child = context.Process(target=train_in_child, args=(str(ROOT), [str(config)]))
        before = steps_recorded(run_dir)
        child.start()
        watched = Watched(child)
        if kills % 2:
            wait_for(lambda: any((run_dir / 'checkpoints').glob('.writing-*')), watched)
            saving += 1
        else:
            steps = rng.randint(1, 8)
            wait_for(lambda: steps_recorded(run_dir) >= before + steps, watched)
        child.kill()
        child.join()
        kills += 1
    done = subprocess.run([sys.executable, '-m', 'imago.trainer', str(config)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and 'resumed from' in done.stdout, done.stderr
    assert_keys_are_the_order(run_dir, open_dataset(shards), round(total * 1000))
    dist.init('cpu')
    train_here(tiny_config(shards, straight, **settings))
    ends = [read_checkpoint(list_checkpoints(folder / 'checkpoints')[-1]) for folder in (run_dir, straight)]
    assert ends[0]['nimg'] == total * 1000 and not differing(*ends)
    assert saving == 3


class Watched:
    """A multiprocessing process with the two members of Popen that `wait_for` reads."""

    def __init__(self, process):
        self._process = process

    def poll(self):
        return self._process.exitcode

    @property
    def returncode(self):
        return self._process.exitcode


def assert_keys_are_the_order(run_dir, dataset, total):
    """Each step of the run saw just the pictures that the order gives it, also where it was run again after a kill."""
    order = Order(dataset.manifest, 12, 0)
    seen = set()
    for line in (run_dir / 'keys-rank0.jsonl').read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # a line torn by a kill; its step is run again
            continue
        expected = []
        for index in batch_indices(record['nimg'], 12, 12, 0, 1).tolist():
            shard, number = order.locate(index)
            expected.append(sample_key(dataset.manifest.shards[shard].first + number))
        assert record['keys'] == expected
        seen.add(record['nimg'])
    assert seen == set(range(0, total, 12))
