"""Checkpoints and grids also come by the clock of rank 0, on all ranks at once, and change no bit."""

from types import SimpleNamespace

from runs_for_tests import differing, on_ranks, tiny_config, train_here

from imago.trainer import train
from imago.trainer.ranks import dist
from imago.trainer.runs.checkpoint import list_checkpoints


def trained(data, folder, minutes_a_look):
    """Train with a clock that rank 0 finds `minutes_a_look` later whenever it looks; the clocks of other ranks stand still."""
    looks = iter(range(1000))
    clock = SimpleNamespace(monotonic=lambda: 60 * minutes_a_look * next(looks) if dist.is_main() else 0.0)
    train.time, before = clock, train.time
    try:
        checkpoint = {'interval_kimg': 1, 'interval_minutes': 30, 'keep': 9}
        return train_here(tiny_config(data, folder, checkpoint=checkpoint, log={'interval_kimg': 0.012, 'grid': [2, 2]}))
    finally:
        train.time = before


def both(data, folder):
    return trained(data, folder / 'late', 20), trained(data, folder / 'never', 0)


def test_two_ranks_save_by_the_clock_of_the_first(shards, tmp_path):
    for late, never in on_ranks(2, both, shards, tmp_path):
        assert not differing(late, never)
    saved = {name: [path.name[-2:] for path in list_checkpoints(tmp_path / name / 'checkpoints')] for name in ('late', 'never')}
    # the clock is read at the start, after each step, and once more with each save: 20 minutes apart
    assert saved == {'late': ['24', '48'], 'never': ['48']}
    grids = sorted(path.name for path in (tmp_path / 'late' / 'grids').glob('fakes-*'))
    assert grids == [f'fakes-00000.0{nimg}.png' for nimg in ('00', '24', '48')]
