"""A new run takes the lanes that fit; a run that goes on keeps its own, whatever the ranks, so that its order stays."""

import pytest
from runs_for_tests import tiny_config, train_here

from imago.trainer.data.shards import open_dataset
from imago.trainer.runs.dataset import lanes_of
from imago.trainer.runs.run_folder import read_config


def test_a_run_keeps_its_lanes(shards, tmp_path):
    config = tiny_config(shards, tmp_path / 'run', total_kimg=0.012, data={'path': str(shards), 'workers': 0})
    dataset = open_dataset(str(shards))
    assert config.data.lanes is None and lanes_of(config, dataset, 1) == 12
    train_here(config)
    assert read_config(tmp_path / 'run').data.lanes == 12
    larger = config.model_copy(update={'batch': 24})
    assert lanes_of(larger, dataset, 2) == 12
    with pytest.raises(ValueError, match='12 lanes, which 5 ranks cannot share alike; go on with 1, 2, 3, 4, 6, 12 ranks'):
        lanes_of(config, dataset, 5)
    elsewhere = config.model_copy(update={'run_dir': str(tmp_path / 'other'), 'batch': 24})
    assert lanes_of(elsewhere, dataset, 1) == 24
