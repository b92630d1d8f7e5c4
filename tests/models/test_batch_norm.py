"""Batch norm: against PyTorch's, over ranks, far from 0, twice differentiable, and its running and standing statistics."""

import pytest
import torch
from torch import nn
from torch.autograd import gradgradcheck
from torch.nn import functional as F

from imago.trainer.models.batch_norm import MOMENTUM, BatchNorm, ConditionalBatchNorm, standing_statistics, synchronise


def maps(*size, dtype=torch.float64, offset=3.0):
    return torch.randn(*size, dtype=dtype) * 2 + offset


def filled(norm):
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def test_as_pytorch_has_it():
    torch.manual_seed(0)
    norm, x = filled(BatchNorm(3).double()), maps(4, 3, 5, 6)
    torch.testing.assert_close(norm(x), F.batch_norm(x, None, None, norm.gain, norm.bias, training=True))
    torch.testing.assert_close(norm.stored_mean, MOMENTUM * x.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(norm.stored_var, 1 - MOMENTUM + MOMENTUM * x.var(dim=(0, 2, 3), correction=0))
    norm.eval()
    torch.testing.assert_close(norm(x), F.batch_norm(x, norm.stored_mean, norm.stored_var, norm.gain, norm.bias))


def test_conditions_choose_gain_and_bias():
    torch.manual_seed(0)
    norm, x = ConditionalBatchNorm(3, 2).double(), maps(4, 3, 5, 6)
    standard = F.batch_norm(x, None, None, training=True)
    condition = torch.eye(2, dtype=torch.float64)[[0, 1, 1, 0]]
    torch.testing.assert_close(norm(x, condition), standard)
    norm.gain.weight.data[:, 1], norm.bias.weight.data[:, 1] = 0.5, -1
    torch.testing.assert_close(norm(x, condition), torch.stack([standard[0], *(standard[1:3] * 1.5 - 1), standard[3]]))


def test_two_ranks_are_as_one():
    """Outputs and gradients; each rank's sums are told to the other."""
    torch.manual_seed(0)
    norm, target = filled(BatchNorm(3).double()), torch.randn(4, 3, 5, 6, dtype=torch.float64)
    x = maps(4, 3, 5, 6).requires_grad_()
    expected = norm(x)
    expected_gradient, = torch.autograd.grad((expected * target).sum(), x)
    stored = norm.stored_mean.clone(), norm.stored_var.clone()

    mean, outputs = x.mean(dim=(0, 2, 3), keepdim=True), []
    for own, other in (x[:2], x[2:]), (x[2:], x[:2]):
        norm.stored_mean.zero_()
        norm.stored_var.fill_(1)
        from_other = iter([other.sum(dim=(0, 2, 3)), (other - mean).square().sum(dim=(0, 2, 3))])
        synchronise(norm, lambda sums, more=from_other: sums + next(more), ranks=2)
        outputs.append(norm(own))
        torch.testing.assert_close((norm.stored_mean, norm.stored_var), stored)
    torch.testing.assert_close(torch.cat(outputs), expected)
    gradient, = torch.autograd.grad((torch.cat(outputs) * target).sum(), x)
    torch.testing.assert_close(gradient, expected_gradient)


def test_keeps_its_digits_far_from_zero():
    torch.manual_seed(0)
    x = maps(8, 2, 16, 16, offset=1e4)
    single = BatchNorm(2)(x.float())
    assert (single - F.batch_norm(x, None, None, training=True)).abs().max() < 5e-3   # raw moments are off by more than 1


def test_low_precision_maps_have_precise_statistics():
    torch.manual_seed(0)
    x = maps(8, 2, 16, 16, dtype=torch.float32, offset=0).bfloat16()
    norm = BatchNorm(2)
    assert norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(norm.stored_mean, MOMENTUM * x.double().mean(dim=(0, 2, 3)).float())


@pytest.mark.parametrize('training', [True, False])
def test_differentiates_twice(training):
    torch.manual_seed(0)
    norm = filled(ConditionalBatchNorm(2, 3).double()).train(training)
    x, condition = maps(3, 2, 2, 2).requires_grad_(), torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    assert gradgradcheck(norm, (x, condition))


def test_standing_statistics_are_means_over_batches():
    torch.manual_seed(0)
    network = nn.Sequential(BatchNorm(2), nn.Conv2d(2, 2, 1)).eval()
    batches = [maps(4, 2, 3, 3, dtype=torch.float32) for _ in range(5)]
    network[0].stored_mean.fill_(100)
    with standing_statistics(network):
        assert not any(network(batch).requires_grad for batch in batches)
    assert not network.training and not network[0].training
    torch.testing.assert_close(network[0].stored_mean, torch.stack([x.mean(dim=(0, 2, 3)) for x in batches]).mean(dim=0))
    torch.testing.assert_close(network[0].stored_var,
                               torch.stack([x.var(dim=(0, 2, 3), correction=0) for x in batches]).mean(dim=0))
    before = network[0].stored_mean.clone()
    network.train()(batches[0])
    torch.testing.assert_close(network[0].stored_mean, before.lerp(batches[0].mean(dim=(0, 2, 3)), MOMENTUM))
