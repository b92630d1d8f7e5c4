"""A run ends by `stop_after`, like one that has reached total_kimg, and goes on bitwise as if it had not."""

import json
from types import SimpleNamespace

import pytest
from runs_for_tests import differing, on_ranks, tiny_config, train_here, write_tiny

from imago.launch.node import finished
from imago.trainer import train
from imago.trainer.config.duration import in_words, to_seconds
from imago.trainer.config.load import load_config
from imago.trainer.data.shards import open_dataset
from imago.trainer.plan.preflight import describe_needs
from imago.trainer.ranks import dist
from imago.trainer.runs.checkpoint import list_checkpoints
from imago.trainer.runs.stats import Stats
from imago.trainer.tools.train import main


@pytest.fixture
def a_second_a_look(monkeypatch):
    """The clock of rank 0 is a second later whenever it is looked at; it is, as training begins, and after each step."""
    set_clock(monkeypatch.setattr)


def set_clock(set_attribute):
    looks = iter(range(1000))
    set_attribute(train, 'time', SimpleNamespace(monotonic=lambda: next(looks) if dist.is_main() else 0))


def test_durations_are_read_and_written():
    for text, seconds in {'90s': 90, '4m': 240, '2h': 7200, '1h30m': 5400, '1d1s': 86401, '0090s': 90}.items():
        assert to_seconds(text) == seconds and to_seconds(in_words(seconds)) == seconds
    assert [in_words(seconds) for seconds in (0, 90, 240, 5400)] == ['0s', '1m30s', '4m', '1h30m']


@pytest.mark.parametrize('text', ['240', '4 m', '4min', '1.5h', '-4m', '4m2h', 'm', '', 'soon', '[4m]', '٤m', '9' * 10 + 's'])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match='stop_after=.*: .* is no duration; give one with its unit, such as 90s, 4m'):
        load_config('stylegan2-64', [f'stop_after={text}' if text else "stop_after=''"])


def test_the_key_has_bounds_and_survives_being_written(tmp_path):
    for text in '0s', '999999999d':
        with pytest.raises(ValueError, match=f'stop_after={text}: Input should be'):
            load_config('stylegan2-64', [f'stop_after={text}'])
    assert load_config('stylegan2-64').stop_after is None
    config = load_config('stylegan2-64', ['stop_after=1h30m'])
    assert config.stop_after == 5400 and config.model_dump(mode='json')['stop_after'] == '1h30m'
    assert config.changed(['batch=32']).stop_after == 5400


def stopped_and_resumed(data, folder):
    """Return the state after a run that was ended after each second step, and after one that was not."""
    before = train.time
    try:
        ends = []
        for name, stop_after in (('parts', '3s'), ('parts', '3s'), ('whole', None)):
            set_clock(setattr)
            config = tiny_config(data, folder / name, stop_after=stop_after, checkpoint={'interval_kimg': 1, 'keep': 9},
                                 log={'interval_kimg': 1, 'grid': [2, 2]})
            ends.append(train_here(config))
    finally:
        train.time = before
    return ends[1:]


@pytest.mark.parametrize('ranks', [1, 2])
def test_a_run_that_time_has_ended_goes_on_bitwise(shards, tmp_path, ranks):
    for parts, whole in on_ranks(ranks, stopped_and_resumed, shards, tmp_path):
        assert not differing(parts, whole)
    saved = {name: [path.name[-2:] for path in list_checkpoints(tmp_path / name / 'checkpoints')] for name in ('parts', 'whole')}
    # the clock is looked at as training begins, as the loop begins and after each step: two steps end at 3 seconds
    assert saved == {'parts': ['24', '48'], 'whole': ['48']}
    grids = sorted(path.name for path in (tmp_path / 'parts' / 'grids').glob('fakes-*'))
    assert grids == [f'fakes-00000.0{nimg}.png' for nimg in ('00', '24', '48')]


def test_it_ends_with_the_same_words_and_status_as_at_total_kimg(shards, tmp_path, capsys, a_second_a_look):
    config = str(write_tiny(shards, tmp_path / 'run', tmp_path / 'c.yaml', log={'interval_kimg': 1, 'grid': [2, 2]}))
    place = f'kimg; pictures and checkpoints in {tmp_path / "run"}'
    assert main([config, 'stop_after=3s']) == 0
    over = '; stop_after=3s is over, and the same command goes on from there\n'
    assert f'finished at 0.024 {place}{over}' in capsys.readouterr().out
    lines = (tmp_path / 'run' / 'stats.jsonl').read_text().splitlines()
    assert [json.loads(line)['nimg'] for line in lines] == [24], 'it reports how far it came'
    assert main([config]) == 0
    assert f'finished at 0.048 {place}\n' in capsys.readouterr().out


def test_launchers_know_that_time_is_over(shards, tmp_path, monkeypatch, a_second_a_look):
    config = tiny_config(shards, tmp_path / 'run', stop_after='2s')
    assert not finished(config)
    train_here(config)
    assert finished(config) and not finished(config.model_copy(update={'stop_after': None}))
    monkeypatch.setattr(train.StopSignals, 'requested', True)
    train_here(config)
    assert not finished(config), 'a start that was told to stop is to be started again'


def test_a_start_takes_a_step_however_short_its_time(shards, tmp_path, a_second_a_look):
    for nimg in (12, 24):
        assert train_here(tiny_config(shards, tmp_path / 'run', stop_after='1s'))['nimg'] == nimg


def test_it_is_told_before_and_while_the_run_goes_on(shards, tmp_path, monkeypatch):
    told = describe_needs(tiny_config(shards, tmp_path, stop_after='4m'), open_dataset(shards).manifest, 1, 'cpu')
    assert 'ends          at 0.048 kimg, or after 4m of training (stop_after); the same command then goes on' in told
    clock = SimpleNamespace(perf_counter=lambda: clock.now, now=0.0)
    monkeypatch.setattr('imago.trainer.runs.stats.time', clock)
    for stop_after, expected in ((240, '1.0 kimg (25% of stop_after=4m)  16.7 img/s  1m00s elapsed, 3m00s left'),
                                 (None, '1.0/100.0 kimg (1%)  16.7 img/s  1m00s elapsed, 1h39m left'),
                                 (86400, '1.0/100.0 kimg (1%)  16.7 img/s  1m00s elapsed, 1h39m left')):
        clock.now = 0.0
        stats = Stats(tmp_path, 100_000, 0, False, stop_after)
        clock.now = 60.0
        assert stats._line(1000).startswith(expected)
