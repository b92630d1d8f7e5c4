"""Gradients of each phase, whatever the strategy, to be compared with those of one process."""

import torch
from runs_for_tests import game_of, whole

from imago.trainer.data.shards import open_dataset
from imago.trainer.engine.parallel import make_strategy
from imago.trainer.engine.phase import run_phase
from imago.trainer.engine.zero import ZeroAdam
from imago.trainer.start import open_stream


def gradients_of_each_phase(config, nimg=0):
    """{phase: (flat gradient, the averages it reports)} after `nimg` images, without taking optimizer steps."""
    dataset, strategy = open_dataset(config.data.path), make_strategy(config.parallel)
    game = game_of(config, strategy)
    game.state.nimg = nimg
    game.begin_step()
    batch = next(open_stream(config, dataset, game.plan, nimg))
    for optimizer in game.state.optimizers.values():
        optimizer.step = lambda: None
    found = {}
    for phase in game.phases():
        result = run_phase(phase, game.micro_batches(batch, phase), game.state, config.seed, strategy)
        found[phase.name] = torch.cat([average_gradient(game.state, name) for name in phase.trains]), result.means
    return found


def average_gradient(state, name):
    """Return the gradients of all the network's parameters, end to end, averaged over ranks. All ranks call it together."""
    network, optimizer = state.networks[name], state.optimizers[name]
    if isinstance(optimizer, ZeroAdam):
        found = {key: gradient for part in optimizer.parts for key, gradient in part.whole(part.gradient).items()}
        return torch.cat([found[key].flatten() for key, _ in network.named_parameters()])
    return torch.cat([whole(p.grad).flatten() for p in network.parameters()])


def assert_same_gradients(found, alone, about='', *, limit=1e-5, rtol=1e-4, atol=1e-6):
    """Compare what a rank and what one process found, as `gradients_of_each_phase` returns it, up to rounding."""
    assert found.keys() == alone.keys()
    for phase, (expected, means) in alone.items():
        gradient, their_means = found[phase]
        assert expected.norm() > 0
        assert (gradient - expected).norm() / expected.norm() < limit, (about, phase)
        for key, value in means.items():
            assert torch.allclose(value, their_means[key], rtol=rtol, atol=atol), (about, key)
