import math

import torch
from runs_for_tests import on_ranks, whole
from torch import nn

from trainer.config.load import OptimConfig, ParallelConfig, is_fixed
from trainer.engine.parallel import make_strategy
from trainer.engine.phase import NonFiniteGradient, Phase, run_phase
from trainer.ranks import dist


def strategy_of(network, name='data'):
    strategy = make_strategy(ParallelConfig(strategy=name))
    strategy.spread(network)
    return strategy


def poisoned_step(bad_rank, name='data', nimg=24_000):
    """A step whose gradient is NaN on one rank; returns what was raised and whether the weights stayed."""
    torch.manual_seed(0)
    network = nn.Linear(3, 1)
    before = network.weight.clone()
    strategy = strategy_of(network, name)
    factor = math.nan if dist.rank() == bad_rank else 1.0
    optimizer = strategy.optimizer(network, OptimConfig())
    phase = Phase('D_main', network, optimizer, 1, lambda micro: (network(micro).mean() * factor, {}))
    try:
        run_phase(phase, [torch.ones(2, 3)], 0, nimg, strategy)
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
    # what is told to be changed may be changed on resume, or another run_dir is told
    assert not is_fixed('optim.g_lr') and not is_fixed('optim.d_lr') and is_fixed('network.low_precision')
    assert 'network.low_precision=none needs another run_dir' in later


def test_accumulated_micro_batches_equal_one_batch():
    images = torch.randn(8, 3, dtype=torch.float64)
    gradients = []
    for size in (8, 2):
        torch.manual_seed(0)
        network = nn.Linear(3, 1).double()
        phase = Phase('D_main', network, torch.optim.SGD(network.parameters(), 0.0), 1,
                      lambda x: (network(x).square().mean(), {'mean': network(x).mean()}))
        result = run_phase(phase, list(images.split(size)), 0, 0, strategy_of(network))
        gradients.append((network.weight.grad.clone(), result.means['mean']))
    (one, mean), (several, their_mean) = gradients
    assert torch.allclose(one, several, rtol=1e-12) and torch.allclose(mean, their_mean, rtol=1e-12)


def test_missing_gradients_are_zero_not_stale():
    network = nn.ModuleDict({'used': nn.Linear(2, 1), 'unused': nn.Linear(2, 1)})
    strategy = strategy_of(network)
    network['unused'].weight.grad.fill_(5)
    phase = Phase('G_reg', network, torch.optim.SGD(network.parameters(), 0.0), 1, lambda x: (network['used'](x).mean(), {}))
    run_phase(phase, [torch.ones(1, 2)], 0, 0, strategy)
    assert network['unused'].weight.grad.eq(0).all() and network['used'].weight.grad.eq(1).all()
