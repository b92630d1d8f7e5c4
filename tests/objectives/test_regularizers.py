"""Each penalty on functions whose gradients are known, its second derivatives, and the recorded orthogonal penalty."""

from math import sqrt
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn.utils import parametrize

from imago.trainer.models.layers import Conv2d
from imago.trainer.objectives.regularizers import (
    GRADIENT_PENALTIES,
    clip_weights_,
    drift,
    gradient_norm_squared,
    lecam,
    move_mean_,
    orthogonal_penalty,
    path_length_penalty,
    path_lengths,
    weight_so_far,
)

GOLDEN = Path(__file__).parents[1] / 'golden' / 'biggan.safetensors'
COSTS = {'r1': lambda norm: norm ** 2 / 2, 'r2': lambda norm: norm ** 2 / 2,
         'wgan_gp': lambda norm: (norm - 1) ** 2, 'dragan': lambda norm: (norm - 1) ** 2}


def penalty_of(name, D, reals, fakes):
    """Per sample, [N]."""
    penalty = GRADIENT_PENALTIES[name]
    x = penalty.points(reals, fakes).detach().requires_grad_()
    return penalty.factor * penalty.cost(gradient_norm_squared(D(x), x))


@pytest.mark.parametrize('shape', [(3, 4, 5), (2,)], ids=['images', 'points'])
@pytest.mark.parametrize('name', GRADIENT_PENALTIES)
def test_gradient_penalty_of_a_linear_discriminator(name, shape):
    weight = torch.randn(shape, dtype=torch.float64)
    reals, fakes = torch.randn(2, 6, *shape, dtype=torch.float64)
    values = penalty_of(name, lambda x: (x * weight).flatten(1).sum(dim=1, keepdim=True), reals, fakes)
    torch.testing.assert_close(values, COSTS[name](weight.norm()).expand(6))


@pytest.mark.parametrize('name, at', [('r1', 0.0), ('r2', 4.0)])
def test_r1_is_taken_at_reals_and_r2_at_fakes(name, at):
    reals, fakes = torch.zeros(3, 2), torch.full((3, 2), 4.0)
    values = penalty_of(name, lambda x: x.square().sum(dim=1, keepdim=True), reals, fakes)  # gradient 2 x
    assert values.tolist() == [0.5 * 2 * (2 * at) ** 2] * 3


def test_points_between_lie_on_the_line_each_at_its_own_share():
    reals, fakes = torch.randn(2, 500, 3, 2, 2, dtype=torch.float64)
    share = (GRADIENT_PENALTIES['wgan_gp'].points(reals, fakes) - reals) / (fakes - reals)
    torch.testing.assert_close(share, share[:, :1, :1, :1].expand_as(share))
    assert 0 <= share.min() < 0.02 and 0.98 < share.max() <= 1 and abs(share.mean() - 0.5) < 0.05


def test_points_around_reals_are_within_half_a_deviation():
    reals = 3 * torch.randn(500, 3, 2, 2)
    offset = (GRADIENT_PENALTIES['dragan'].points(reals, None) - reals) / reals.std()
    assert -1e-6 < offset.min() and offset.max() <= 0.5 + 1e-6 and abs(offset.mean() - 0.25) < 0.02


@pytest.mark.parametrize('name', GRADIENT_PENALTIES)
def test_penalties_train_the_discriminator(name):
    """First and second derivatives with respect to the weights, through a double backward, agree with finite differences."""
    first, second = torch.randn(5, 3, dtype=torch.float64), torch.randn(1, 5, dtype=torch.float64)
    reals, fakes = torch.randn(2, 4, 3, dtype=torch.float64)

    def total(first, second):
        torch.manual_seed(0)
        return penalty_of(name, lambda x: (x @ first.T).tanh() @ second.T, reals, fakes)
    weights = (first.requires_grad_(), second.requires_grad_())
    assert torch.autograd.gradcheck(total, weights) and torch.autograd.gradgradcheck(total, weights)


@pytest.mark.parametrize('name', ['wgan_gp', 'dragan'])
def test_no_slope_gives_a_cost_of_one_and_finite_gradients(name):
    slope = torch.zeros(2, requires_grad=True)
    values = penalty_of(name, lambda x: (x * slope).sum(dim=1, keepdim=True), torch.randn(3, 2), torch.randn(3, 2))
    gradient, = torch.autograd.grad(values.sum(), slope)
    assert values.tolist() == pytest.approx([1, 1, 1], abs=1e-5) and gradient.isfinite().all()


def test_drift_and_lecam():
    real, fake = torch.tensor([[1.0], [-2.0]]), torch.tensor([[3.0], [0.5]])
    assert drift(real).tolist() == [1, 4]
    # reals above the fakes' mean and fakes below the reals' pay; those beyond do not
    assert lecam(real, fake, 2.0, -1.0).tolist() == [2 ** 2, 1.5 ** 2]
    assert lecam(torch.tensor([[-1.0]]), torch.tensor([[2.0]]), torch.tensor(2.0), torch.tensor(-1.0)).tolist() == [0]
    assert lecam(torch.tensor([[-5.0]]), torch.tensor([[9.0]]), 2.0, -1.0).tolist() == [0]


def test_lecam_means_are_right_from_the_first_step():
    values, mean = [3.0, 5.0, 4.0, -2.0], torch.tensor(0.0)
    for steps, value in enumerate(values):
        move_mean_(mean, torch.tensor(value), 0.9, steps)
        weights = [0.9 ** (steps - step) for step in range(steps + 1)]
        weighted = sum(weight * value for weight, value in zip(weights, values, strict=False)) / sum(weights)
        assert (mean / weight_so_far(0.9, steps + 1)).item() == pytest.approx(weighted)
    late = torch.tensor(0.0)        # switched on after 20 steps
    for steps, value in (20, 7.0), (21, -3.0):
        move_mean_(late, torch.tensor(value), 0.9, steps)
    assert (late / weight_so_far(0.9, 22)).item() == pytest.approx(6, abs=0.2)      # 0.9 * 7 - 0.1 * 3


def test_path_lengths_of_a_linear_map():
    ws = torch.randn(2, 7, 6, dtype=torch.float64, requires_grad=True)
    jacobian = torch.randn(3 * 4 * 4, 6, dtype=torch.float64)  # the picture is J (sum of the layers' w)
    noise = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    lengths = path_lengths((ws.sum(dim=1) @ jacobian.T).view(2, 3, 4, 4), ws, noise)
    expected = (noise.flatten(1) @ jacobian / 4).norm(dim=1)
    torch.testing.assert_close(lengths, expected)
    torch.testing.assert_close(path_length_penalty(lengths, torch.tensor(2.0)), (expected - 2).square())


def test_golden_relaxed_orthogonal_penalty():
    G = nn.Module()
    with safe_open(GOLDEN, 'pt') as file:
        expected = float(file.metadata()['ortho_offdiag_sq_sum_G_without_shared'])
        for name in file.keys():
            if name.startswith('G.') and name.endswith('.weight'):
                *path, leaf = name.split('.')[1:]
                module = G
                for part in path:
                    if part not in dict(module.named_children()):
                        module.add_module(part, nn.Module())
                    module = module.get_submodule(part)
                module.register_parameter(leaf, nn.Parameter(file.get_tensor(name)))
    assert hasattr(G, 'shared')
    assert orthogonal_penalty(G).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('shape', [(5, 3, 1, 1), (3, 2, 2, 2)], ids=['tall', 'wide'])
def test_orthogonal_penalty_by_its_definition(shape):
    layer = nn.Conv2d(shape[1], shape[0], shape[2], dtype=torch.float64)
    matrix = layer.weight.detach().flatten(1)
    off_diagonal = matrix @ matrix.T * (1 - torch.eye(shape[0], dtype=torch.float64))
    penalty = orthogonal_penalty(layer, relaxed=True)
    torch.testing.assert_close(penalty, off_diagonal.square().sum())
    gradient, = torch.autograd.grad(penalty, layer.weight)
    torch.testing.assert_close(gradient.flatten(1), 4 * off_diagonal @ matrix)
    plain = matrix.T @ matrix - torch.eye(matrix.shape[1], dtype=torch.float64)
    torch.testing.assert_close(orthogonal_penalty(layer, relaxed=False), plain.square().sum())


def test_orthogonal_rows_cost_nothing_of_any_length_if_relaxed():
    layer = nn.Linear(6, 4, bias=False)
    nn.init.orthogonal_(layer.weight)
    plain = orthogonal_penalty(layer, relaxed=False).item()
    assert plain == pytest.approx(2, abs=1e-5)          # 6 columns cannot be orthonormal in 4 dimensions
    layer.weight.data *= torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    assert orthogonal_penalty(layer).item() == pytest.approx(0, abs=1e-3)
    assert orthogonal_penalty(layer, relaxed=False).item() > plain + 1


def test_orthogonal_penalty_sees_the_weight_that_is_learned():
    class Third(nn.Module):
        def forward(self, weight):
            return weight / 3
    layer = nn.Linear(4, 5)
    raw = orthogonal_penalty(layer)
    parametrize.register_parametrization(layer, 'weight', Third())
    assert torch.equal(orthogonal_penalty(layer), raw)
    orthogonal_penalty(layer).backward()
    assert layer.parametrizations.weight.original.grad.any()

    transposed = nn.ConvTranspose2d(4, 5, 1)
    transposed.weight.data.copy_(layer.parametrizations.weight.original.data.T[..., None, None])
    torch.testing.assert_close(orthogonal_penalty(transposed), raw)

    equalised = Conv2d(4, 5, 3)
    plain = nn.Conv2d(4, 5, 3)
    plain.weight.data.copy_(equalised.weight.data / sqrt(4 * 9))
    torch.testing.assert_close(orthogonal_penalty(equalised), orthogonal_penalty(plain))

    with pytest.raises(ValueError, match='BatchNorm1d has no weights'):
        orthogonal_penalty(nn.BatchNorm1d(3))


def test_clip_weights():
    network = nn.Linear(3, 4)
    nn.init.uniform_(network.weight, -1, 1)
    nn.init.constant_(network.bias, -0.5)
    before = network.weight.detach().clone()
    clip_weights_(network, 0.1)
    assert torch.equal(network.weight, before.clamp(-0.1, 0.1)) and network.bias.tolist() == pytest.approx([-0.1] * 4)
    assert network.weight.requires_grad and network.weight.is_leaf
    with pytest.raises(ValueError, match='limit 0'):
        clip_weights_(network, 0)
