"""Batch norm (Ioffe & Szegedy 2015) takes its statistics over all ranks; gains and biases may be each sample's own.

Legend: N batch, C channels, H W pixels.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

MOMENTUM = 0.1   # the new batch's share in the running statistics

SumOverRanks = Callable[[Tensor], Tensor]


def identity(x: Tensor) -> Tensor:
    """x [...] -> x, which is the sum over a single rank."""
    return x


class Standardise(nn.Module):
    """Gives each channel of maps [NCHW] mean 0 and variance 1, by the batch's statistics or, in eval mode, by the running ones.

    `sum_over_ranks` adds tensors over `ranks` and is differentiable; see `synchronise`.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.sum_over_ranks: SumOverRanks = identity
        self.ranks = 1
        self.standing_batches: int | None = None   # how many batches standing statistics have seen; None while none are taken
        self.register_buffer('stored_mean', torch.zeros(channels))
        self.register_buffer('stored_var', torch.ones(channels))

    def standardise(self, x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        """x [NCHW], gain and bias [C] or [N, C] -> [NCHW] in the type of x. Statistics are computed in float32 or better."""
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.training:
            # Two passes are needed: on maps far from 0, the difference of raw moments would lose its digits.
            count = x.numel() // x.shape[1] * self.ranks
            mean = self.sum_over_ranks(precise.sum(dim=(0, 2, 3))) / count
            centred = precise - as_planes(mean)
            var = self.sum_over_ranks(centred.square().sum(dim=(0, 2, 3))) / count
            self._remember(mean, var)
        else:
            centred, var = precise - as_planes(self.stored_mean), self.stored_var
        scale = gain * (var + self.eps).rsqrt()
        return torch.addcmul(as_planes(bias), centred, as_planes(scale)).to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor) -> None:
        share = MOMENTUM
        if self.standing_batches is not None:
            self.standing_batches += 1
            share = 1 / self.standing_batches
        self.stored_mean.lerp_(mean.to(self.stored_mean.dtype), share)
        self.stored_var.lerp_(var.to(self.stored_var.dtype), share)


class BatchNorm(Standardise):
    """Maps [NCHW] to [NCHW] with a learned gain and bias for each channel."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, eps)
        self.gain, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """x [NCHW] -> [NCHW]"""
        return self.standardise(x, self.gain, self.bias)


class ConditionalBatchNorm(Standardise):
    """Maps [NCHW] to [NCHW]. Gains - 1 and biases are linear in each sample's condition [N, condition_dim], and start at 0."""

    def __init__(self, channels: int, condition_dim: int, eps: float = 1e-5) -> None:
        super().__init__(channels, eps)
        self.gain = nn.Linear(condition_dim, channels, bias=False)
        self.bias = nn.Linear(condition_dim, channels, bias=False)
        nn.init.zeros_(self.gain.weight)
        nn.init.zeros_(self.bias.weight)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [NCHW], condition [N, condition_dim] -> [NCHW]"""
        return self.standardise(x, 1 + self.gain(condition), self.bias(condition))


def as_planes(values: Tensor) -> Tensor:
    """[C] or [N, C] -> [1, C, 1, 1] or [N, C, 1, 1]"""
    return values.reshape(-1, values.shape[-1], 1, 1)


def has_batch_norm(network: nn.Module) -> bool:
    return any(isinstance(module, Standardise) for module in network.modules())


def synchronise(network: nn.Module, sum_over_ranks: SumOverRanks, ranks: int) -> None:
    """Take batch statistics over all `ranks`, which have equally many samples; `sum_over_ranks` must be differentiable."""
    for module in network.modules():
        if isinstance(module, Standardise):
            module.sum_over_ranks, module.ranks = sum_over_ranks, ranks


@contextmanager
def standing_statistics(network: nn.Module) -> Iterator[None]:
    """Inside, the running statistics become the means over the batches of fakes that are made. Brock et al. 2019, appendix D.

    Gradients are off inside; afterwards the network is in the mode that it was in before.
    """
    norms = [module for module in network.modules() if isinstance(module, Standardise)]
    was_training = network.training
    network.train()
    for norm in norms:
        norm.standing_batches = 0
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(was_training)
        for norm in norms:
            norm.standing_batches = None
