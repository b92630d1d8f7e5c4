"""The checkpoint with the best score outlives the last k, over resumes too."""

from pathlib import Path

import pytest
from runs_for_tests import tiny_config, train_here

from imago.trainer.metrics.protocol import Scores
from imago.trainer.ranks import dist
from imago.trainer.runs.checkpoint import list_checkpoints
from imago.trainer.runs.export import describe
from imago.trainer.start import prepare
from imago.trainer.train import train
from imago.trainer.watch import evaluation
from imago.trainer.watch.guard import roll_back

KID = {12: 0.3, 24: 0.1, 36: 0.2, 48: 0.4, 60: 0.05, 72: 0.2, 84: 0.07}     # by images shown

PROTOCOL = {'extractor': 'effnet_lite0', 'resizer': 'clean', 'fakes': 10, 'reals': 10, 'reals_at_most': 10, 'seed': 0,
            'psi': 1.0, 'psi_cutoff': None, 'truncation': None, 'noise': 'random'}


@pytest.fixture
def scored(monkeypatch):
    """Evaluations that find KID."""
    def evaluate(fakes, *_):
        value = KID[watched[-1].state.nimg]
        return Scores({'kid_effnet_lite0': value}, {'kid_effnet_lite0': (value, value)}, PROTOCOL)

    class Watched(evaluation.Evaluation):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            watched.append(self)

    watched = []
    monkeypatch.setattr(evaluation, 'Evaluation', Watched)
    monkeypatch.setattr(evaluation, 'evaluate', evaluate)


def kept(run: Path) -> list[int]:
    return [int(path.name) for path in list_checkpoints(run / 'checkpoints')]


def test_the_best_is_kept_beside_the_newest(shards, tmp_path, scored):
    dist.init('cpu')
    section = {'interval_kimg': 0.012, 'metrics': ['kid'], 'images': 10, 'extractor': 'effnet_lite0'}
    for total, expected, best in ((0.048, [24, 48], 24), (0.072, [60, 72], 60), (0.084, [60, 84], 60)):
        train_here(tiny_config(shards, tmp_path / 'run', total_kimg=total, evaluate=section,
                               checkpoint={'interval_kimg': 0.012, 'keep': 1, 'best': 'kid'}))
        assert kept(tmp_path / 'run') == expected
        assert describe(tmp_path / 'run' / 'checkpoints' / 'best')[1]['nimg'] == best


@pytest.mark.parametrize('last_good, back_to, best_left', [(36, 24, True), (12, 12, False)])
def test_the_guard_goes_back_to_the_best_unless_that_came_too_late(shards, tmp_path, scored, last_good, back_to, best_left):
    dist.init('cpu')
    section = {'interval_kimg': 0.012, 'metrics': ['kid'], 'images': 10, 'extractor': 'effnet_lite0'}
    run = prepare(tiny_config(shards, tmp_path / 'run', evaluate=section,
                              checkpoint={'interval_kimg': 0.012, 'keep': 4, 'best': 'kid'}))
    train(run)
    assert roll_back(run.state, run.checkpoints, last_good) and run.state.nimg == back_to
    assert (tmp_path / 'run' / 'checkpoints' / 'best').is_symlink() == best_left == (run.checkpoints.best == 24)
