"""All registered operations (`torch.ops.imago`) share the layouts of their outputs, and how they get gradients."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def is_nhwc(x: Tensor) -> bool:
    """Return whether x is dense as [N, H, W, C] and not as [N, C, H, W] too. csrc/ops.cpp decides alike."""
    if x.ndim != 4 or x.is_contiguous():
        return False
    _, channels, height, width = x.shape
    return x.stride() == (channels * height * width, 1, channels * width, channels)


def empty_map(like: Tensor, shape: Sequence[int] | None = None, nhwc: bool | None = None) -> Tensor:
    """Return an empty map [*shape] for an operation to fill, of the type of `like`.

    Without `shape` it has the shape of `like`, and without `nhwc` the layout of `like`.
    """
    nhwc = is_nhwc(like) if nhwc is None else nhwc
    return like.new_empty(like.shape if shape is None else shape).contiguous(
        memory_format=torch.channels_last if nhwc else torch.contiguous_format)


def small_dtype(x: Tensor) -> torch.dtype:
    """Return the type of biases, scales, taps and sums beside maps of x's type; the arithmetic has it too."""
    return torch.promote_types(x.dtype, torch.float32)


def wanted(ctx) -> tuple[bool, ...]:
    """Return for each input of a Function, inside of its backward, whether this pass needs a gradient.

    `ctx.needs_input_grad` does not know the `inputs` of autograd.grad, such as the pictures of R1, which needs none of weights.
    """
    if not hasattr(ctx, 'next_functions'):    # compiled code has no nodes
        return ctx.needs_input_grad
    nodes = (node for node, _ in ctx.next_functions if node is not None)    # of the inputs that require a gradient
    return tuple(need and _is_reached(next(nodes)) for need in ctx.needs_input_grad)


def _is_reached(node: torch.autograd.graph.Node) -> bool:
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:    # it is one of `inputs` itself
        return True


def differentiable(name: str, setup: Callable, backward: Callable) -> Callable:
    """Return `torch.ops.imago.<name>` with gradients, for eager and compiled code. `setup` and `backward` are those of an
    autograd.Function; gradients that are not there arrive as None."""
    def remember(ctx, inputs: tuple, output: object) -> None:
        ctx.set_materialize_grads(False)
        setup(ctx, inputs, output)

    torch.library.register_autograd(f'imago::{name}', backward, setup_context=remember)
    op = getattr(torch.ops.imago, name)

    class Eager(torch.autograd.Function):
        """This does the same as the registration above, at a quarter of its overhead (15 in place of 57 us a call)."""

        @staticmethod
        def forward(ctx, *inputs):
            with torch._C._AutoDispatchBelowAutograd():
                output = op(*inputs)
            remember(ctx, inputs, output)
            return output

    Eager.backward = staticmethod(backward)  # type: ignore[method-assign]  # each operation has its own
    Eager.__name__ = name
    return lambda *inputs: op(*inputs) if torch.compiler.is_compiling() else Eager.apply(*inputs)
