"""The first test of every strategy: gradients of each phase against one process."""

import pytest
from gradients_for_tests import assert_same_gradients, gradients_of_each_phase
from runs_for_tests import on_ranks, tiny_config


@pytest.mark.parametrize('conditional', [False, True])
def test_gradients_equal_those_of_one_process(shards, tmp_path, conditional):
    tree = {'path': str(shards), 'lanes': 12, 'workers': 0, 'conditional': conditional}
    config = tiny_config(shards, tmp_path, data=tree)
    alone = gradients_of_each_phase(config)
    assert set(alone) == {'D_main', 'D_reg', 'G_main', 'G_reg'}
    for found in on_ranks(2, gradients_of_each_phase, config):
        assert_same_gradients(found, alone, limit=1e-6, rtol=1e-5, atol=1e-8)
