"""Spectral norm and stable rank keep what they promise about the weights, and only training moves the power iteration."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.nn import functional as F

from imago.trainer.models import stylegan2
from imago.trainer.models.spectral import (
    SpectralNorm,
    normalise_weights,
    power_iterate,
    spectral_norm,
    stable_rank_norm,
    top_singular_values,
)


def sigma(weight):
    return torch.linalg.matrix_norm(weight.detach().flatten(1), 2).item()


def converged(network):
    for _ in range(200):
        power_iterate(network)
    return network


@pytest.mark.parametrize('make', [lambda: nn.Conv2d(5, 7, 3), lambda: nn.Linear(4, 9), lambda: nn.Embedding(6, 3)])
def test_power_iteration_converges(make):
    torch.manual_seed(0)
    layer = converged(spectral_norm(make()))
    norm, original = layer.parametrizations.weight[0], layer.parametrizations.weight.original
    assert sigma(layer.weight) == pytest.approx(1, rel=1e-4)
    assert norm.sv0.item() == pytest.approx(sigma(original), rel=1e-4)
    assert norm.u0.shape == (1, len(original)) and norm.sv0.shape == (1,)


def test_only_power_iterate_moves_u_and_always_alike():
    torch.manual_seed(0)
    network = nn.Sequential(spectral_norm(nn.Linear(4, 9)), nn.ReLU(), spectral_norm(nn.Linear(9, 2)))
    before, twin = copy.deepcopy(network), copy.deepcopy(network)
    network(torch.randn(3, 4)).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(network.buffers(), before.buffers(), strict=True))
    power_iterate(network)
    power_iterate(twin)
    assert not any(torch.equal(a, b) for a, b in zip(network.buffers(), before.buffers(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(network.buffers(), twin.buffers(), strict=True))


@pytest.mark.parametrize('length', [0.9, 1e-3, 40.0])
@pytest.mark.parametrize('normalised', [spectral_norm, lambda layer: stable_rank_norm(layer, 0.25)])
def test_the_length_of_a_stored_u_changes_nothing(normalised, length):
    torch.manual_seed(0)
    layer = normalised(nn.Conv2d(8, 16, 3))
    expected = layer.weight.detach().clone()
    layer.parametrizations.weight[0].u0 *= length
    torch.testing.assert_close(layer.weight, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_a_u_of_our_own_keeps_its_bits(dtype):
    torch.manual_seed(0)
    for rows in 1, 3, 64, 24576:
        norm = SpectralNorm(torch.randn(rows, 5, dtype=dtype))
        assert torch.equal(norm.unit_u(), norm.u0)


def test_backward_uses_the_u_of_its_forward():
    torch.manual_seed(0)
    layer, x = spectral_norm(nn.Linear(4, 9)), torch.randn(3, 4)
    original = layer.parametrizations.weight.original
    expected, = torch.autograd.grad(layer(x).square().sum(), original)
    loss = layer(x).square().sum()
    power_iterate(layer)
    gradient, = torch.autograd.grad(loss, original)
    assert torch.equal(gradient, expected)


def test_gradient_is_that_of_the_published_equation():
    """Miyato et al. 2018, equation 12: (G - <G, W / sigma> u v^T) / sigma for the gradient G at the normalised weight."""
    torch.manual_seed(0)
    weight, upstream = (torch.randn(4, 6, dtype=torch.float64) for _ in range(2))
    norm = converged(spectral_norm(nn.Linear(6, 4).double())).parametrizations.weight[0]
    u = norm.u0.clone()
    v = F.normalize(u @ weight)
    ours, = torch.autograd.grad((norm(weight.requires_grad_()) * upstream).sum(), weight)
    value = (u @ weight * v).sum()
    torch.testing.assert_close(ours, (upstream - (upstream * weight / value).sum() * u.t() @ v) / value)


def test_gradients_of_gradient_penalties():
    """d/dW |d/dx f(x; W / sigma)|^2 is compared with finite differences, where sigma = |W^T u| for the present u."""
    torch.manual_seed(0)
    weight, x = torch.randn(4, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    norm = SpectralNorm(weight)

    def penalty(weight):
        gradient, = torch.autograd.grad(F.linear(x, norm(weight)).pow(3).sum(), x, create_graph=True)
        return gradient.square().sum()

    assert gradcheck(penalty, (weight.requires_grad_(),))


def test_stable_rank_is_bounded():
    torch.manual_seed(0)
    layer = converged(stable_rank_norm(nn.Conv2d(8, 16, 3), 0.25))
    weight = layer.weight.detach().flatten(1)
    assert sigma(weight) == pytest.approx(1, rel=1e-3)
    assert weight.square().sum().item() == pytest.approx(0.25 * 16, rel=1e-3)
    loose = stable_rank_norm(nn.Conv2d(8, 16, 3), 1.0)
    torch.testing.assert_close(loose.weight, loose.parametrizations.weight[0].leading(
        loose.parametrizations.weight.original)[0])


def test_layers_with_one_output_still_learn():
    """A row has stable rank 1 whatever its values: there is nothing to bound."""
    layer = stable_rank_norm(nn.Linear(6, 1), 0.5)
    layer(torch.randn(2, 6)).square().sum().backward()
    assert layer.parametrizations.weight.original.grad.any()


@pytest.mark.parametrize('kind', ['spectral', 'stable_rank'])
def test_equalised_networks_can_be_normalised(kind):
    """Weights times the gain that the layer puts on them have norm 1, so that signals keep their size."""
    torch.manual_seed(0)
    D = normalise_weights(stylegan2.Discriminator(3, (16, 16), 3, channel_base=128, channel_max=16, label_layers=1), kind)
    converged(D)
    assert sigma(D.b16.conv0.weight * D.b16.conv0.weight_gain) == pytest.approx(1, rel=1e-2)
    assert sigma(D.b4.fc.weight * D.b4.fc.weight_gain) == pytest.approx(1, rel=1e-2)
    assert D.b16.fromrgb.parametrizations.weight[0].sv0.item() == pytest.approx(
        sigma(D.b16.fromrgb.parametrizations.weight.original * D.b16.fromrgb.weight_gain), rel=1e-2)
    logits = D(torch.randn(2, 3, 16, 16), torch.eye(3)[:2])
    logits.sum().backward()
    assert logits.isfinite().all()
    count = len(list(D.modules()))
    assert len(list(normalise_weights(D, kind).modules())) == count, 'normalised twice'


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="'spektral' is unknown: take one of spectral, stable_rank"):
        normalise_weights(nn.Linear(2, 2), 'spektral')


def test_top_singular_values():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(40, 6), nn.BatchNorm1d(6), spectral_norm(nn.Linear(6, 30)), nn.Linear(30, 2))
    values = top_singular_values(network)
    assert list(values) == ['0', '2', '3'] and len(values['3']) == 2
    for name, weight in ('0', network[0].weight), ('2', network[2].parametrizations.weight.original):
        assert values[name] == pytest.approx(torch.linalg.svdvals(weight)[:3].tolist(), rel=1e-4)
