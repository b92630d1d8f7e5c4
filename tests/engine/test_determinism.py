"""No operation runs in a step whose sums come in another order each time on a GPU; PyTorch documents which those are.

They are looked for while a CPU computes: forward, backward and backward of the backward.
"""

import pytest
import torch
from families_for_tests import FAMILIES, VARIANTS, config_of
from runs_for_tests import game_of
from torch.utils._python_dispatch import TorchDispatchMode

from imago.trainer.data.shards import open_dataset
from imago.trainer.engine.parallel import make_strategy
from imago.trainer.engine.phase import run_phase
from imago.trainer.objectives.augment import ADA, DiffAugment, sampling
from imago.trainer.objectives.augment.ada import GROUPS
from imago.trainer.objectives.augment.diffaugment import POLICIES
from imago.trainer.start import open_stream

# what torch.use_deterministic_algorithms refuses or replaces on CUDA, by the name of the operation
ANY_ORDER = {
    'index_add', 'index_add_', 'index_copy', 'index_reduce', 'scatter_add', 'scatter_add_', 'scatter_reduce', 'put_', 'put',
    'grid_sampler_2d_backward', 'grid_sampler_3d_backward', 'reflection_pad1d_backward', 'reflection_pad2d_backward',
    'replication_pad1d_backward', 'replication_pad2d_backward', 'upsample_linear1d_backward', 'upsample_bilinear2d_backward',
    '_upsample_bilinear2d_aa_backward', 'upsample_bicubic2d_backward', '_upsample_bicubic2d_aa_backward',
    '_adaptive_avg_pool2d_backward', 'adaptive_max_pool2d_backward', 'fractional_max_pool2d_backward', 'max_unpool2d',
    '_embedding_bag', 'cumsum', 'cumsum_', 'bincount', 'histc', 'kthvalue', 'median', 'nll_loss2d_forward', 'ctc_loss',
}


class Watched(TorchDispatchMode):
    """Collects the operations inside, and those among them whose sums have no order."""

    def __init__(self):
        super().__init__()
        self.all, self.unordered = set(), set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = op._schema.name.removeprefix('aten::')
        self.all.add(name)
        if self.adds_in_any_order(name, args, kwargs or {}):
            self.unordered.add(name)
        return op(*args, **(kwargs or {}))

    @staticmethod
    def adds_in_any_order(name, args, kwargs):
        if name in ('index_put', 'index_put_', '_index_put_impl_'):
            return kwargs.get('accumulate', len(args) > 3 and args[3])
        if name == 'max_pool2d_with_indices_backward':   # it adds only where windows overlap
            return list(args[3]) not in ([], list(args[2]))
        return name in ANY_ORDER and args[0].is_floating_point()     # whole numbers have one sum in any order


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(sampling, 'adds_in_any_order', lambda device: True)


def watched(augment):
    """Watch a gradient penalty through `augment`, and its gradient."""
    images, weight = (torch.rand(3, 3, 16, 16).requires_grad_() for _ in range(2))
    with Watched() as found:
        outputs = (augment(images) * weight).square().sum()
        torch.autograd.grad(outputs, images, create_graph=True)[0].square().sum().backward()
    assert images.grad.norm() > 0 and weight.grad.norm() > 0
    return found


@pytest.mark.parametrize('groups', [*[(group,) for group in GROUPS], GROUPS])
def test_ada(as_on_a_gpu, groups):
    assert not watched(lambda images: ADA(groups, 3, (16, 16))(images, 0.9)).unordered


@pytest.mark.parametrize('policies', [*[(policy,) for policy in POLICIES], tuple(POLICIES)])
def test_diffaugment(as_on_a_gpu, policies):
    assert not watched(DiffAugment(policies)).unordered


@pytest.mark.parametrize('unordered, augment', [
    ('index_add', lambda images: images.index_select(2, torch.tensor([0, 0, 1]))[..., :3, :].mean(2, keepdim=True)),
    ('scatter_add', lambda images: images.gather(3, torch.zeros(3, 3, 16, 16, dtype=torch.int64))),
    ('index_put', lambda images: images[:, :, torch.zeros(16, dtype=torch.int64)]),
    ('upsample_bilinear2d_backward', lambda images: torch.nn.functional.interpolate(images, size=(16, 16), mode='bilinear')),
    ('scatter_add_', lambda images: ADA(('geometry',), 3, (16, 16))(images, 0.9)),     # as on a CPU, which adds in order
])
def test_what_has_no_order_is_found(unordered, augment):
    assert unordered in {name.strip('_') if name.startswith('_index') else name for name in watched(augment).unordered}


@pytest.mark.parametrize('name', FAMILIES | VARIANTS)
def test_every_phase_of_every_family(as_on_a_gpu, wide_shards, tmp_path, name):
    config = config_of(name, wide_shards, tmp_path)
    game, strategy = game_of(config), make_strategy(config.parallel)
    for network in game.state.networks.values():
        strategy.spread(network)
    game.begin_step()
    batch = next(open_stream(config, open_dataset(config.data.path), game.plan, 0))
    with Watched() as found:
        for phase in game.phases():
            run_phase(phase, game.micro_batches(batch, phase), game.state, config.seed, strategy)
    assert 'convolution_backward' in found.all and not found.unordered


# Sums of whole numbers

def spread(values, index, size=(4, 4)):
    """Values [N, C, n] -> their sums at pixels `index` [N, n] of pictures [NCHW]."""
    return sampling._Spread.apply(values[..., None], torch.Size(size), sampling._pixel, index[..., None])


def test_whole_numbers_have_the_same_sum_in_any_order(as_on_a_gpu):
    values, index, order = torch.randn(2, 3, 5000) * 1e-30, torch.randint(16, (2, 5000)), torch.randperm(5000)
    sums = spread(values, index)
    assert sums.equal(spread(values[..., order], index[:, order]))
    exact = torch.zeros(2, 3, 16, dtype=torch.float64).scatter_add_(2, index[:, None].expand(-1, 3, -1), values.double())
    torch.testing.assert_close(sums.flatten(2), exact.float(), rtol=1e-6, atol=1e-36)


def test_whole_numbers_never_overflow(as_on_a_gpu):
    values, index = torch.full((1, 1, 4096), 3e38), torch.zeros(1, 4096, dtype=torch.int64)
    assert spread(values / 4096, index)[0, 0, 0, 0] == pytest.approx(3e38)


@pytest.mark.parametrize('bad', [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_so(as_on_a_gpu, bad):
    values, index = torch.ones(2, 1, 16), torch.arange(16).expand(2, -1)
    values[0, 0, 3] = bad
    sums = spread(values, index)
    assert not sums[0, 0, 0, 3].isfinite() and sums[1].equal(values[1].view(1, 4, 4))
    assert spread(torch.zeros(1, 1, 16), index[:1]).equal(torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize('augment', [lambda images: ADA(GROUPS, 3, (16, 16))(images, 0.9), DiffAugment(POLICIES)])
def test_gradients_are_those_of_plain_sums(monkeypatch, augment):
    images, gradients = torch.rand(4, 3, 16, 16).requires_grad_(), []
    for whole in (False, True):
        monkeypatch.setattr(sampling, 'adds_in_any_order', lambda device, whole=whole: whole)
        torch.manual_seed(0)
        gradients += torch.autograd.grad(augment(images).square().sum(), images)
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)
