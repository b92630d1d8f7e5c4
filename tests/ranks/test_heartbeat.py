"""A rank that stands still, or fails, is named by the others, which end as well."""

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from runs_for_tests import write_tiny
from shards_for_tests import copy_dataset
from torch.distributed import TCPStore

from imago.trainer.ranks.heartbeat import Heartbeat, Place, judge

ROOT = Path(__file__).parents[2]
TIMEOUT = 120
LIMIT = 0.04   # minutes


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def start_ranks(*overrides_by_rank, config):
    """`python -m trainer` for each rank, without torchrun, which would end them its own way."""
    port, ranks = free_port(), []
    for rank, overrides in enumerate(overrides_by_rank):
        world = str(len(overrides_by_rank))
        environment = {'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': world, 'LOCAL_WORLD_SIZE': world,
                       'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
        ranks.append(subprocess.Popen([sys.executable, '-m', 'imago.trainer', str(config), *overrides], cwd=ROOT, text=True,
                                      env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    return ranks


@pytest.mark.parametrize('stopped', [0, 1])
def test_a_stopped_rank_is_named_in_time(shards, tmp_path, stopped):
    config = write_tiny(shards, tmp_path / 'run', tmp_path / 'c.yaml', total_kimg=1000, parallel={'timeout_minutes': LIMIT})
    ranks = start_ranks((), (), config=config)
    other = ranks[1 - stopped]
    try:
        assert any(' kimg (' in line for line in ranks[0].stdout)   # it trains
        ranks[stopped].send_signal(signal.SIGSTOP)
        _, errors = other.communicate(timeout=TIMEOUT)
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert other.returncode == 1
    # rank 0 holds the store, so that where it stands cannot be read
    expected = {0: 'error: rank 0, or its launcher, on 127.0.0.1, has not moved for',
                1: f'error: rank 1 on {socket.gethostname()} has not moved since'}
    assert expected[stopped] in errors and errors.count('\n') == 1, errors


@pytest.mark.parametrize('failing', [0, 1])
def test_a_shard_error_on_one_rank_ends_the_other_quietly(shards, tmp_path, failing):
    config = write_tiny(shards, tmp_path / 'run', tmp_path / 'c.yaml', total_kimg=1000)
    broken = copy_dataset(shards, tmp_path / 'broken')
    (broken / 'shard-00001.tar').unlink()
    ranks = start_ranks(*([f'data.path={broken}'] if rank == failing else [] for rank in range(2)), config=config)
    told = [rank.communicate(timeout=TIMEOUT)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 1], told
    assert 'Traceback' not in ''.join(told) and [text.count('\n') for text in told] == [1, 1], told
    assert 'error: shard-00001.tar cannot be opened' in told[failing]
    # where rank 0 fails, it may take the reason with it
    reasons = [f'stopped because rank {failing} failed: shard-00001.tar cannot be opened', 'rank 0, or its launcher, on 127']
    assert any(reason in told[1 - failing] for reason in reasons[:2 - failing])


class Recorded(Heartbeat):
    """This heartbeat keeps what it would say, and does not end the process."""

    told: str | None = None

    def _end(self, message, status):
        self.told = message
        self._ended.set()


@pytest.fixture
def pair():
    """Two heartbeats on one store, with a limit of 0.4 s."""
    store = TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)
    beats = [Recorded(('127.0.0.1', store.port), rank, 2, 0.4) for rank in range(2)]
    with closing(beats[0]), closing(beats[1]):
        yield beats


def wait_for_end(beat, seconds):
    return beat._ended.wait(seconds)


def test_a_rank_may_take_its_time_where_it_says_so(pair):
    slow, waiting = pair
    for beat in pair:
        beat.begin_step(0)
        beat.begin_step(12)
    with slow.patience('evaluating'):
        waiting.move('12 images (phase D_main)')
        waiting.move()
        waiting.move()
        assert not wait_for_end(waiting, 2.0)
    assert wait_for_end(waiting, TIMEOUT) and 'rank 0 on' in waiting.told and 'hangs' in waiting.told


def test_the_first_step_may_take_its_time(pair):
    for beat in pair:
        beat.begin_step(0)
    pair[1].move()
    assert not wait_for_end(pair[1], 2.0)
    for beat in pair:
        beat.begin_step(12)
    pair[1].move()
    assert wait_for_end(pair[1], TIMEOUT) and 'since 12 images (reading pictures)' in pair[1].told


def test_a_rank_that_moves_is_left_alone(pair):
    for beat in pair:
        beat.begin_step(0)
        beat.begin_step(12)
    for _ in range(100):
        pair[1].move()
    steps = threading.Event()
    for _ in range(20):
        pair[0].move()
        assert not steps.wait(0.1) and pair[1].told is None


def place(moves, still=99.0, beat=2, patient=False):
    return Place(beat, moves, still, patient, 'there', 'host')


@pytest.mark.parametrize('places, expected', [
    ([place(5), place(4), place(5)], 'rank 1 on host has not moved since there: its process runs, but hangs'),
    ([place(5), place(4, still=1.0), place(5)], None),
    ([place(5), place(4, patient=True), place(5)], None),
    ([place(5), place(5), place(5, beat=1)], 'rank 2 on host has not moved since there: its process is stopped'),
    ([place(5), place(4, patient=True, beat=1), place(5)], 'rank 1 on host has not moved since there: its process is'),
    ([place(5), place(5), place(5)], 'no rank has moved since there'),
])
def test_who_is_to_blame(places, expected):
    verdict = judge([place(5, beat=1)] * 3, places, limit=10.0)
    assert verdict is None if expected is None else verdict.startswith(expected)


def test_a_failure_of_the_attempt_before_is_forgotten(pair):
    pair[1].fail('old', 1)
    assert pair[0].failure() == ('stopped because rank 1 failed: old', 1)
    with closing(Recorded(pair[0]._address, 0, 2, 0.4)) as again:
        assert again.failure()[0].startswith('another rank is gone without a word')
