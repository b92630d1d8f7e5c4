import math

import pytest
import torch
from runs_for_tests import on_ranks, whole
from torch import nn

from imago.trainer.config.load import OptimConfig, ParallelConfig, is_fixed
from imago.trainer.engine.parallel import make_strategy
from imago.trainer.engine.phase import Phase, run_phase
from imago.trainer.engine.results import NonFiniteGradient
from imago.trainer.engine.state import TrainState
from imago.trainer.ranks import dist


def strategy_of(*networks, name='data'):
    strategy = make_strategy(ParallelConfig(strategy=name))
    for network in networks:
        strategy.spread(network)
    return strategy


def poisoned_step(bad_rank, name='data', nimg=24_000):
    """A step whose gradient is NaN on one rank; returns what was raised and whether the weights stayed."""
    torch.manual_seed(0)
    network = nn.Linear(3, 1)
    before = network.weight.clone()
    strategy = strategy_of(network, name=name)
    factor = math.nan if dist.rank() == bad_rank else 1.0
    state = TrainState({'D': network}, optimizers={'D': strategy.optimizer(network, OptimConfig())}, nimg=nimg)
    phase = Phase('D_main', ('D',), ('D',), 1, lambda micro: (network(micro).mean() * factor, {}))
    try:
        run_phase(phase, [torch.ones(2, 3)], state, 0, strategy)
    except NonFiniteGradient as error:
        return str(error), torch.equal(whole(network.weight), before)
    return None, False


def test_a_non_finite_gradient_is_named_by_phase_images_and_rank():
    message, untouched = poisoned_step(0)
    assert 'phase D_main at 24000 images' in message and 'on rank 0' in message and untouched
    for name in ('data', 'fsdp', 'zero'):
        for message, untouched in on_ranks(2, poisoned_step, 1, name):
            assert 'on rank 1;' in message and untouched


def test_what_can_be_done_about_it_depends_on_what_is_there():
    before, _ = poisoned_step(0, nimg=0)
    assert 'no checkpoint is there' in before and 'start with another run_dir' in before and 'resume' not in before
    later, _ = poisoned_step(0)
    assert 'goes on from the last checkpoint' in later
    # the message names keys that may be changed on resume, and for the key that may not, it asks for another run_dir
    assert not is_fixed('optim.g_lr') and not is_fixed('optim.d_lr') and is_fixed('network.low_precision')
    assert 'network.low_precision=none needs another run_dir' in later


def test_accumulated_micro_batches_equal_one_batch():
    images = torch.randn(8, 3, dtype=torch.float64)
    gradients = []
    for size in (8, 2):
        torch.manual_seed(0)
        network = nn.Linear(3, 1).double()
        state = TrainState({'D': network}, optimizers={'D': torch.optim.SGD(network.parameters(), 0.0)})
        phase = Phase('D_main', ('D',), ('D',), 1,
                      lambda x: (network(x).square().mean(), {'mean': network(x).mean()}))
        result = run_phase(phase, list(images.split(size)), state, 0, strategy_of(network))
        gradients.append((network.weight.grad.clone(), result.means['mean']))
    (one, mean), (several, their_mean) = gradients
    assert torch.allclose(one, several, rtol=1e-12) and torch.allclose(mean, their_mean, rtol=1e-12)


def test_missing_gradients_are_zero_not_stale():
    network = nn.ModuleDict({'used': nn.Linear(2, 1), 'unused': nn.Linear(2, 1)})
    strategy = strategy_of(network)
    network['unused'].weight.grad.fill_(5)
    state = TrainState({'G': network}, optimizers={'G': torch.optim.SGD(network.parameters(), 0.0)})
    phase = Phase('G_reg', ('G',), ('G',), 1, lambda x: (network['used'](x).mean(), {}))
    run_phase(phase, [torch.ones(1, 2)], state, 0, strategy)
    assert network['unused'].weight.grad.eq(0).all() and network['used'].weight.grad.eq(1).all()


def several_learn(name):
    """Return the networks' weights after a step that trains two of three, and the gradient norm that it reported."""
    networks = {key: nn.Linear(2, 2, bias=False) for key in 'ABC'}
    for network in networks.values():
        nn.init.eye_(network.weight).requires_grad_(False)
    strategy = strategy_of(*networks.values(), name=name)
    optimizers = {key: strategy.optimizer(network, OptimConfig()) for key, network in networks.items()}
    for optimizer in optimizers.values():
        optimizer.param_groups[0]['lr'] = 0.1
    A, B, C = networks.values()
    phase = Phase('AB_main', ('A', 'B'), ('A', 'B', 'C'), 1, lambda x: (C(B(A(x))).sum(), {'x': x.mean()}))
    result = run_phase(phase, [torch.ones(1, 2)], TrainState(networks, optimizers=optimizers), 0, strategy)
    return {key: whole(network.weight).clone() for key, network in networks.items()}, result.gradient_norm


def test_a_phase_steps_those_that_it_trains_together_and_no_other():
    """Each of A's and B's 4 gradients is 1 at the identity, and Adam's first step is as long as its learning rate."""
    spread = [found for name in ('data', 'fsdp', 'zero') for found in on_ranks(2, several_learn, name)]
    for weights, norm in (several_learn('data'), *spread):
        assert norm.item() == pytest.approx(math.sqrt(8))
        assert torch.equal(weights['C'], torch.eye(2))
        for key in 'AB':
            torch.testing.assert_close(weights[key], torch.eye(2) - 0.1)


def test_a_phase_uses_what_it_trains():
    with pytest.raises(AssertionError, match='phase G_main trains what it does not use'):
        Phase('G_main', ('G',), ('D',), 1, lambda x: (x, {}))
