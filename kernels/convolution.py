"""Convolutions whose second gradients cost what their first ones do.

PyTorch's own double backward convolves with kernels as large as the maps, which was measured to take 25 times as long on an H200.
"""

import torch
from torch import Tensor

from imago.kernels.ops import wanted

convolution, convolution_backward = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default
Options = tuple[int, int, bool, tuple[int, int], int]   # stride, padding, transposed, output padding (y, x), groups


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
    """Do what torch.nn.functional.conv2d does: x [NIHW], weight [O, I / groups, k, k], bias [O] -> [NOHW].

    It is differentiable any number of times.
    """
    if torch.compiler.is_compiling():   # torch's own can be traced
        return torch.nn.functional.conv2d(x, weight, bias, stride, padding, 1, groups)
    return _Convolution.apply(x, weight, bias, (stride, padding, False, (0, 0), groups))


def conv_transpose2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0) -> Tensor:
    """Do what torch.nn.functional.conv_transpose2d does: x [NIHW], weight [I, O, k, k], bias [O] -> [NOHW].

    It is differentiable any number of times.
    """
    if torch.compiler.is_compiling():
        return torch.nn.functional.conv_transpose2d(x, weight, bias, stride, padding)
    return _Convolution.apply(x, weight, bias, (stride, padding, True, (0, 0), 1))


def _arguments(options: Options) -> tuple:
    stride, padding, transposed, output_padding, groups = options
    return [stride] * 2, [padding] * 2, [1, 1], transposed, list(output_padding), groups


def _adjoint(options: Options, size: torch.Size, out_size: torch.Size, kernel: torch.Size) -> Options:
    """Return the options of the convolution that maps gradients by the output to those by the input. Sizes are [..., H, W]."""
    stride, padding, transposed, _, groups = options
    rest = (0, 0) if transposed else tuple(
        size[axis] - ((out_size[axis] - 1) * stride - 2 * padding + kernel[axis]) for axis in (-2, -1))
    return stride, padding, not transposed, rest, groups


class _Convolution(torch.autograd.Function):
    """x, weight, bias -> y. With g beside them, <convolution(x, weight), g> is linear in each of the three, so that all its
    gradients are convolutions again, or gradients by the weight."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options, ctx.outputs = options, None if bias is None else list(bias.shape)
        return convolution(x, weight, bias, *_arguments(options))

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), options = ctx.saved_tensors, ctx.options
        for_x, for_weight, for_bias = wanted(ctx)[:3]
        if not torch.is_grad_enabled():
            return *convolution_backward(g, x, weight, ctx.outputs, *_arguments(options), [for_x, for_weight, for_bias]), None
        dx = dweight = None
        if for_x:
            dx = _Convolution.apply(g, weight, None, _adjoint(options, x.shape, g.shape, weight.shape))
        if for_weight:
            dweight = _WeightGradient.apply(x, g, weight.detach(), options)
        return dx, dweight, g.sum((0, 2, 3)) if for_bias else None, None


class _WeightGradient(torch.autograd.Function):
    """x, g -> the gradient by the weight, which tells its shape and layout here."""

    @staticmethod
    def forward(ctx, x: Tensor, g: Tensor, weight: Tensor, options: Options) -> Tensor:
        ctx.save_for_backward(x, g)
        ctx.options = options
        return convolution_backward(g, x, weight, None, *_arguments(options), [False, True, False])[1]

    @staticmethod
    def backward(ctx, v: Tensor) -> tuple[Tensor | None, ...]:
        (x, g), options = ctx.saved_tensors, ctx.options
        for_x, for_g = wanted(ctx)[:2]
        dx = _Convolution.apply(g, v, None, _adjoint(options, x.shape, g.shape, v.shape)) if for_x else None
        return dx, _Convolution.apply(x, v, None, options) if for_g else None, None, None
