"""Transforms share these functions, which apply their chance and read pictures at other positions.

All can be differentiated any number of times.
"""

from typing import cast

import torch
from torch import Tensor


def with_probability(p: Tensor | float, strength: Tensor, neutral: float = 0.0) -> Tensor:
    """strength [N, ...] -> [N, ...]: each sample keeps its own with probability p, else it gets `neutral`."""
    chosen = torch.rand(len(strength), device=strength.device) < p
    return torch.where(chosen.reshape(-1, *[1] * (strength.ndim - 1)), strength, neutral)


def at_identity(matrices: Tensor) -> Tensor:
    """Tell which of [N, k, k] are the identity, as [N, 1, 1, 1] to choose among pictures."""
    identity = torch.eye(matrices.shape[1], dtype=matrices.dtype, device=matrices.device)
    return (matrices == identity).flatten(1).all(dim=1)[:, None, None, None]


def reflect(position: Tensor, size: int) -> Tensor:
    """Map any integer positions [...] to 0 ... size-1, by mirroring at the outermost pixels without end."""
    period = 2 * (size - 1)
    position = position % period
    return torch.minimum(position, period - position)


def extend(images: Tensor, axis: int, first: int, end: int) -> Tensor:
    """Take [NCHW] from position `first` to before `end` along `axis`, mirrored as `reflect` does."""
    return images.index_select(axis, reflect(torch.arange(first, end, device=images.device), images.shape[axis]))


def take_pixels(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Take the pixels of [NCHW] at integer columns x and rows y inside, which broadcast to [N, h, w] -> [N, C, h, w]."""
    index = y * images.shape[3] + x
    taken = images.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, images.shape[1], -1))
    return taken.unflatten(2, index.shape[1:])


def read_bilinear(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Read [NCHW] at fractional x and y [N, h, w] in 0 ... size-1 -> [N, C, h, w]. The positions get no gradient."""
    return _Read.apply(images, x, y)


class _Read(torch.autograd.Function):
    """Reading is linear in the picture, so its gradient is its transpose, whose gradient is reading again.

    [NCHW] is read at x and y [N, h, w] -> [N, C, h, w].
    Only positions are kept for backward: autograd's own record of the four gathers would be several times as large.
    """

    @staticmethod
    def forward(ctx, images: Tensor, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.size = images.shape[2:]
        flat = images.flatten(2)
        corners = (flat.gather(2, index.expand(-1, flat.shape[1], -1)).mul_(weight)
                   for index, weight in _corners(x, y, *ctx.size))
        return cast(Tensor, sum(corners)).unflatten(2, x.shape[1:])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Spread.apply(grad, *ctx.saved_tensors, ctx.size), None, None


class _Spread(torch.autograd.Function):
    """Is the transpose of reading: the value at each position goes to the four pixels around it. [N, C, h, w] -> [NCHW]."""

    @staticmethod
    def forward(ctx, values: Tensor, x: Tensor, y: Tensor, size: torch.Size) -> Tensor:
        ctx.save_for_backward(x, y)
        flat = values.flatten(2)
        images = flat.new_zeros(*flat.shape[:2], size.numel())
        for index, weight in _corners(x, y, *size):
            images.scatter_add_(2, index.expand_as(flat), flat * weight)
        return images.unflatten(2, size)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _Read.apply(grad, *ctx.saved_tensors), None, None, None


def _corners(x: Tensor, y: Tensor, height: int, width: int) -> list[tuple[Tensor, Tensor]]:
    """Return flat index and weight, both [N, 1, h * w], of the four pixels around each position."""
    x, y = x.flatten(1)[:, None], y.flatten(1)[:, None]
    # Positions on the last row or column belong to the cell before it.
    left, top = x.floor().clamp(max=width - 2), y.floor().clamp(max=height - 2)
    right_weight, bottom_weight = x - left, y - top
    index = top.long() * width + left.long()
    return [(index, (1 - right_weight) * (1 - bottom_weight)), (index + 1, right_weight * (1 - bottom_weight)),
            (index + width, (1 - right_weight) * bottom_weight), (index + width + 1, right_weight * bottom_weight)]
