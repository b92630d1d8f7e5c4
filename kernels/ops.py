"""What all registered operations (`torch.ops.imago`) share: layouts of their outputs, and how they get gradients."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def is_nhwc(x: Tensor) -> bool:
    """Whether x is dense as [N, H, W, C]. What is dense as [N, C, H, W] too counts as that. As csrc/ops.cpp has it."""
    if x.ndim != 4 or x.is_contiguous():
        return False
    _, channels, height, width = x.shape
    return x.stride() == (channels * height * width, 1, channels * width, channels)


def empty_map(like: Tensor, shape: Sequence[int] | None = None, nhwc: bool | None = None) -> Tensor:
    """The maps that an operation returns for `like`: same type, and same layout unless `nhwc` says.

    They are [*shape], or of the shape of `like`.
    """
    nhwc = is_nhwc(like) if nhwc is None else nhwc
    return like.new_empty(like.shape if shape is None else shape).contiguous(
        memory_format=torch.channels_last if nhwc else torch.contiguous_format)


def small_dtype(x: Tensor) -> torch.dtype:
    """Type of biases, scales, taps and sums beside maps of x's type, and of the arithmetic."""
    return torch.promote_types(x.dtype, torch.float32)


def differentiable(name: str, setup: Callable, backward: Callable) -> Callable:
    """`torch.ops.imago.<name>` with gradients, for eager and compiled code. `setup` and `backward` as for an
    autograd.Function; gradients that are not there arrive as None."""
    def remember(ctx, inputs: tuple, output: object) -> None:
        ctx.set_materialize_grads(False)
        setup(ctx, inputs, output)

    torch.library.register_autograd(f'imago::{name}', backward, setup_context=remember)
    op = getattr(torch.ops.imago, name)

    class Eager(torch.autograd.Function):
        """The registration above, at a quarter of its overhead (57 and 15 us a call)."""

        @staticmethod
        def forward(ctx, *inputs):
            with torch._C._AutoDispatchBelowAutograd():
                output = op(*inputs)
            remember(ctx, inputs, output)
            return output

    Eager.backward, Eager.__name__ = staticmethod(backward), name
    return lambda *inputs: op(*inputs) if torch.compiler.is_compiling() else Eager.apply(*inputs)
