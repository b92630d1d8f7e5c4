"""Spectral norm (Miyato et al. 2018) and stable rank (Sanyal et al. 2020) normalise the weights of layers of any network.

A weight [out, ...] counts as the matrix W [out, in]. Power iteration from the buffer u0 estimates its largest singular value.
Only `power_iterate` moves u0: forward passes change nothing, so frozen networks stay as they are.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

KINDS = ('spectral', 'stable_rank')


class SpectralNorm(nn.Module):
    """Maps W to W / sigma(W) with sigma = u^T W v. Miyato et al. 2018, algorithm 1.

    gain: the factor by which the layer multiplies its weight (equalised learning rates); the product gets the norm 1.
    """

    def __init__(self, weight: Tensor, eps: float = 1e-12, gain: float = 1.0) -> None:
        super().__init__()
        self.eps, self.gain = eps, gain
        self.register_buffer('u0', F.normalize(weight.new_empty(1, len(weight)).normal_(), eps=eps))
        self.register_buffer('sv0', weight.new_ones(1))  # the last sigma, which is only for people to look at
        # A random u is nearly orthogonal to the image of a tall W; one iteration brings it into that image.
        self.power_iterate(weight)

    @torch.no_grad()
    def power_iterate(self, weight: Tensor) -> None:
        """Move u0 [1, out] by one iteration with weight [out, ...]."""
        matrix = weight.flatten(1)
        v = F.normalize(self.u0 @ matrix, eps=self.eps)            # [1, in]
        self.u0.copy_(F.normalize(v @ matrix.t(), eps=self.eps))   # [1, out]
        self.sv0.copy_(self.gain * (self.u0 @ matrix).norm())

    def forward(self, weight: Tensor) -> Tensor:
        """weight [out, ...] -> [out, ...]"""
        return self.leading(weight)[0]

    def leading(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """weight [out, ...] -> W / sigma [out, ...], u [1, out] and v [1, in]. Gradients take u and v as constants."""
        matrix = weight.flatten(1)
        with torch.no_grad():
            u = self.unit_u()
            v = F.normalize(u @ matrix, eps=self.eps)
        sigma = (u @ matrix * v).sum()
        return weight / (sigma.clamp(min=self.eps) * self.gain), u, v

    def unit_u(self) -> Tensor:
        """Return a copy of u0 [1, out], scaled to length 1; backward needs a copy that outlives the next iteration.

        Published averages of weights average u0 as well, which makes it shorter. If its length is 1 up to rounding, it keeps
        its bits.
        """
        length = self.u0.norm().clamp(min=self.eps)
        return torch.where((length - 1).abs() < 1e-5, self.u0, self.u0 / length)


class StableRankNorm(SpectralNorm):
    """Gives W spectral norm 1 and a stable rank |W|_F^2 / sigma^2 of at most `rank` > 1. Sanyal et al. 2020, algorithm 1.

    It keeps u v^T and shrinks what remains of W / sigma.
    """

    def __init__(self, weight: Tensor, rank: float, eps: float = 1e-12, gain: float = 1.0) -> None:
        super().__init__(weight, eps, gain)
        self.rank = rank

    def forward(self, weight: Tensor) -> Tensor:
        """weight [out, ...] -> [out, ...]"""
        normalised, u, v = self.leading(weight)
        first = (u.t() @ v).view_as(weight) / self.gain
        rest = normalised - first
        limit = (self.rank - 1) / self.gain ** 2
        return first + rest * (limit / rest.square().sum().clamp(min=limit)).sqrt()


def spectral_norm(module: nn.Module, eps: float = 1e-12) -> nn.Module:
    """Give the module's `weight` spectral norm 1 from now on, and return the module."""
    norm = SpectralNorm(module.weight, eps, getattr(module, 'weight_gain', 1.0))
    parametrize.register_parametrization(module, 'weight', norm)
    return module


def stable_rank_norm(module: nn.Module, share: float, eps: float = 1e-12) -> nn.Module:
    """Do as `spectral_norm`, and keep the stable rank at or below `share` of the full rank.

    If that is 1 or less, only spectral norm is used: matrices of stable rank 1 have nothing left to learn.
    """
    rank = share * min(module.weight.flatten(1).shape)
    if rank <= 1:
        return spectral_norm(module, eps)
    norm = StableRankNorm(module.weight, rank, eps, getattr(module, 'weight_gain', 1.0))
    parametrize.register_parametrization(module, 'weight', norm)
    return module


def normalise_weights(network: nn.Module, kind: str, stable_rank: float = 0.7) -> nn.Module:
    """Normalise the network's linear, convolution and embedding weights that are not normalised yet, and return the network.

    kind: 'spectral', or 'stable_rank', where `stable_rank` is the largest share of the full rank. Raises ValueError for others.
    """
    if kind not in KINDS:
        raise ValueError(f'kind of normalisation {kind!r} is unknown: take one of {", ".join(KINDS)}')
    for module in list(network.modules()):
        weight = dict(module.named_parameters(recurse=False)).get('weight')
        if weight is not None and weight.dim() > 1:
            spectral_norm(module) if kind == 'spectral' else stable_rank_norm(module, stable_rank)
    return network


def power_iterate(network: nn.Module) -> None:
    """Iterate once for each normalised weight. This is to be called once before each optimizer step of `network`."""
    for module in network.modules():
        if parametrize.is_parametrized(module, 'weight'):
            for norm in module.parametrizations.weight:
                norm.power_iterate(module.parametrizations.weight.original)


@torch.no_grad()
def top_singular_values(network: nn.Module, count: int = 3) -> dict[str, list[float]]:
    """Return {layer: the `count` largest singular values of its weight before normalisation}.

    They show collapse before it comes. Brock et al. 2019, section 4.1.
    """
    values = {}
    for name, weight in weight_matrices(network):
        # The smaller Gram matrix is much faster than a wide W, and as good for the largest values.
        matrix = weight if weight.shape[0] <= weight.shape[1] else weight.t()
        squares = torch.linalg.eigvalsh((matrix @ matrix.t()).double())[-count:].flip(0)
        values[name] = squares.clamp(min=0).sqrt().tolist()
    return values


@torch.no_grad()
def spectral_norms(network: nn.Module, iterations: int = 8) -> list[float]:
    """Estimate the spectral norm of each layer's weight before normalisation; the estimate is at most 10% too small.

    Power iteration from a fixed start is much cheaper than `top_singular_values`, and enough to see a norm grow.
    """
    generator, norms = torch.Generator().manual_seed(0), []
    for _, matrix in weight_matrices(network):
        v = torch.randn(matrix.shape[1], generator=generator).to(matrix)
        for _ in range(iterations):
            v = F.normalize(F.normalize(matrix @ v, dim=0) @ matrix, dim=0)
        norms.append((matrix @ v).norm())
    return torch.stack(norms).tolist()


def weight_matrices(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (layer, its weight [out, in] before normalisation) for each linear, convolution and embedding layer."""
    for name, parameter in network.named_parameters():
        layer = name.removesuffix('.parametrizations.weight.original').removesuffix('.weight')
        if layer != name and parameter.dim() > 1:
            yield layer, parameter.flatten(1)
