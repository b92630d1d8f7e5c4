"""Long work says how far it is: a bar on a terminal, else lines now and then; rank 0 alone, and never on stdout."""

import re
import sys

import pytest
from families_for_tests import config_of
from runs_for_tests import train_here

from imago.trainer.ranks import dist, progress
from imago.trainer.ranks.progress import Progress
from imago.trainer.tools import export, sample


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, in a list of one."""
    now = [100.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
    return now


def work(clock, title='fakes', seconds=3, chunks=20):
    with Progress(title, 32 * chunks, 'pictures') as told:
        for _ in range(chunks):
            clock[0] += seconds
            told.add(32)


def test_a_log_has_a_line_at_first_and_each_twenty_seconds(clock, capsys):
    work(clock)
    told = capsys.readouterr()
    assert told.out == ''
    assert told.err.splitlines() == [
        'fakes: 32 of 640 pictures in 3 s, about 57 s left', 'fakes: 256 of 640 pictures in 24 s, about 36 s left',
        'fakes: 480 of 640 pictures in 45 s, about 15 s left']
    work(clock, seconds=0.9)
    work(clock, title=None)
    assert capsys.readouterr() == ('', '')


def test_a_terminal_has_a_bar(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    work(clock)
    told = capsys.readouterr().err
    assert 'fakes:   0%' in told and '0/640' in told and '\n' not in told


def test_other_ranks_are_silent(clock, capsys, monkeypatch):
    monkeypatch.setattr(dist, 'is_main', lambda: False)
    for terminal in False, True:
        monkeypatch.setattr(sys.stderr, 'isatty', lambda: terminal)
        work(clock)
    assert capsys.readouterr() == ('', '')


def test_sampling_and_exporting_tell_how_far_they_are(wide_shards, tmp_path, capsys, monkeypatch):
    dist.init('cpu')
    train_here(config_of('dcgan', wide_shards, tmp_path / 'run'))
    monkeypatch.setattr(progress, 'SECONDS', 0.0)
    capsys.readouterr()
    assert sample.main([str(tmp_path / 'run'), '--seeds', '0-19', '--out', str(tmp_path / 'out')]) == 0
    told = re.sub(r' in \d+ s, about \d+ s left', '', capsys.readouterr().err).splitlines()
    assert told[:3] == ['sampling: 16 of 20 pictures', 'sampling: 20 of 20 pictures', 'writing: 1 of 20 pictures']
    assert len(told) == 22
    assert export.main([str(tmp_path / 'run'), str(tmp_path / 'export'), '--standing-batches', '2']) == 0
    assert 'standing statistics: 2 of 2 batches' in capsys.readouterr().err
