"""Transforms share these functions, which apply their chance and read pictures at other positions.

All can be differentiated any number of times.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_constants: dict[tuple, Tensor] = {}


def constant(values: tuple | Callable[[], Tensor], like: Tensor) -> Tensor:
    """Return numbers, or what a function makes of none, in the type and on the device of `like`, copied there but once."""
    key = values, like.dtype, like.device
    if key not in _constants or type(like) is not Tensor:
        made = (values() if callable(values) else torch.tensor(values, dtype=torch.float64, device='cpu')).to(like)
        if type(made) is not Tensor:    # a tensor without content, which is for those without content alone
            return made
        _constants[key] = made
    return _constants[key]


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
    half, parts = images.shape[axis] - 1, []
    while first < end:
        turn, start = divmod(first, half)
        length = min(half - start, end - first)
        if turn % 2:    # these positions run backwards
            parts.append(images.narrow(axis, half + 1 - start - length, length).flip(axis))
        else:
            parts.append(images.narrow(axis, start, length))
        first += length
    return torch.cat(parts, axis)


def take_pixels(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Take the pixels of [NCHW] at integer columns x and rows y inside, which broadcast to [N, h, w] -> [N, C, h, w]."""
    return _Read.apply(images, _pixel, y * images.shape[3] + x)


def read_bilinear(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Read [NCHW] at fractional x and y [N, h, w] in 0 ... size-1 -> [N, C, h, w]. The positions get no gradient."""
    return _Read.apply(images, _corners, x, y)


# Maps a picture's height and width, and positions, each [N, h, w], to flat index and weight, both [N, 1, h * w], of all pixels
# that make the values there; None is the weight 1.
Sources = Callable[..., list[tuple[Tensor, Tensor | None]]]


class _Read(torch.autograd.Function):
    """Reading is linear in the picture, so its gradient is its transpose, whose gradient is reading again.

    [NCHW] is read at positions, each [N, h, w] -> [N, C, h, w].
    Only positions are kept for backward: autograd's own record of the four gathers would be several times as large.
    """

    @staticmethod
    def forward(ctx, images: Tensor, sources: Sources, *positions: Tensor) -> Tensor:
        ctx.save_for_backward(*positions)
        ctx.sources, ctx.size = sources, images.shape[2:]
        flat, total = images.flatten(2), None
        for index, weight in sources(*ctx.size, *positions):
            taken = flat.gather(2, index.expand(-1, flat.shape[1], -1))
            taken = taken if weight is None else taken.mul_(weight)
            total = taken if total is None else total.add_(taken)
        return total.unflatten(2, positions[0].shape[1:])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        positions = ctx.saved_tensors
        return _Spread.apply(grad, ctx.size, ctx.sources, *positions), None, *(None for _ in positions)


class _Spread(torch.autograd.Function):
    """Is the transpose of reading: the value at each position goes to the pixels that made it. [N, C, h, w] -> [NCHW].

    A GPU adds in whatever order its threads come, so there values become whole numbers, whose sums have the same bits in any
    order. The largest value of a sample gets as many bits as no sum can overflow, 40 at 1024 px, where float32 has 24.
    """

    @staticmethod
    def forward(ctx, values: Tensor, size: torch.Size, sources: Sources, *positions: Tensor) -> Tensor:
        ctx.save_for_backward(*positions)
        ctx.sources = sources
        flat, whole = values.flatten(2), adds_in_any_order(values.device)
        scale = whole_scale(flat) if whole else None
        sums = flat.new_zeros(*flat.shape[:2], size.numel(), dtype=torch.int64 if whole else None)
        for index, weight in sources(*size, *positions):
            weighted = flat if weight is None else flat * weight
            sums.scatter_add_(2, index.expand_as(flat), weighted if scale is None else (weighted * scale).long())
        return (sums if scale is None else (sums / scale).to(values.dtype)).unflatten(2, size)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        positions = ctx.saved_tensors
        return _Read.apply(grad, ctx.sources, *positions), None, None, *(None for _ in positions)


def adds_in_any_order(device: torch.device) -> bool:
    return device.type == 'cuda'


def whole_scale(values: Tensor) -> Tensor:
    """Return the factor [N, 1, 1], float64, that makes values [N, C, n] whole numbers, of which any n add up within int64.

    Sums divided by it are not finite where a value of the sample is not.
    """
    largest = values.abs().amax(dim=(1, 2), keepdim=True).double()
    return 2.0 ** (62 - values.shape[2].bit_length()) / largest.clamp(min=1e-200)


def _pixel(height: int, width: int, index: Tensor) -> list[tuple[Tensor, None]]:
    """Return the flat index of the one pixel at each position."""
    return [(index.flatten(1)[:, None], None)]


def _corners(height: int, width: int, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor | None]]:
    """Return flat index and weight of the four pixels around each position."""
    x, y = x.flatten(1)[:, None], y.flatten(1)[:, None]
    # Positions on the last row or column belong to the cell before it.
    left, top = x.floor().clamp(max=width - 2), y.floor().clamp(max=height - 2)
    right_weight, bottom_weight = x - left, y - top
    index = top.long() * width + left.long()
    return [(index, (1 - right_weight) * (1 - bottom_weight)), (index + 1, right_weight * (1 - bottom_weight)),
            (index + width, (1 - right_weight) * bottom_weight), (index + width + 1, right_weight * bottom_weight)]
