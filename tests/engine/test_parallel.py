"""The first test of every strategy: gradients of each phase against one process."""

import pytest
import torch
from runs_for_tests import on_ranks, tiny_config, whole

from trainer.data.shards import open_dataset
from trainer.engine.parallel import make_strategy
from trainer.engine.phase import run_phase
from trainer.engine.state import make_state
from trainer.engine.zero import ZeroAdam
from trainer.games.latent import to_device
from trainer.games.recipe import Recipe
from trainer.train import open_stream


def gradients_of_each_phase(config, nimg=0):
    """{phase: (flat gradient, the averages it reports)} after `nimg` images, without taking optimizer steps."""
    dataset = open_dataset(config.data.path)
    strategy = make_strategy(config.parallel)
    state = make_state(config, dataset.manifest, torch.device('cpu'), strategy)
    recipe = Recipe(config, dataset.manifest, state)
    state.nimg = nimg
    recipe.begin_step()
    batch = to_device(next(open_stream(config, dataset, nimg)), torch.device('cpu'))
    found = {}
    for phase in recipe.phases():
        phase.optimizer.step = lambda: None
        result = run_phase(phase, recipe.micro_batches(batch, phase), config.seed, nimg, strategy)
        found[phase.name] = average_gradient(phase), result.means
    return found


def average_gradient(phase):
    """Of all the network's parameters, laid end to end. All ranks call it together."""
    if isinstance(phase.optimizer, ZeroAdam):
        found = {name: gradient for part in phase.optimizer.parts for name, gradient in part.whole(part.gradient).items()}
        return torch.cat([found[name].flatten() for name, _ in phase.network.named_parameters()])
    return torch.cat([whole(p.grad).flatten() for p in phase.network.parameters()])


def assert_same_gradients(found, alone, about='', *, limit=1e-5, rtol=1e-4, atol=1e-6):
    """What a rank found, and what one process did: as `gradients_of_each_phase` returns them, up to rounding."""
    assert found.keys() == alone.keys()
    for phase, (expected, means) in alone.items():
        gradient, their_means = found[phase]
        assert expected.norm() > 0
        assert (gradient - expected).norm() / expected.norm() < limit, (about, phase)
        for key, value in means.items():
            assert torch.allclose(value, their_means[key], rtol=rtol, atol=atol), (about, key)


@pytest.mark.parametrize('conditional', [False, True])
def test_gradients_equal_those_of_one_process(shards, tmp_path, conditional):
    tree = {'path': str(shards), 'lanes': 12, 'workers': 0, 'conditional': conditional}
    config = tiny_config(shards, tmp_path, data=tree)
    alone = gradients_of_each_phase(config)
    assert set(alone) == {'D_main', 'D_reg', 'G_main', 'G_reg'}
    for found in on_ranks(2, gradients_of_each_phase, config):
        assert_same_gradients(found, alone, limit=1e-6, rtol=1e-5, atol=1e-8)
