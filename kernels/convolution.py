"""Convolutions whose second gradients cost what their first ones do.

PyTorch's own double backward convolves with kernels as large as the maps, which was measured to take 25 times as long on an H200.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from imago.kernels.ops import wanted

convolution, convolution_backward = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default
PRODUCTS_ON = ('cuda',)      # types of devices, see `_is_product`
LEAST_CHANNELS = 256          # with fewer, copying columns takes a good part of the product's time
MOST_BYTES = 1 << 28          # of columns at a time
Options = tuple[int, int, bool, tuple[int, int], int]   # stride, padding, transposed, output padding (y, x), groups


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
    """Do what torch.nn.functional.conv2d does: x [NIHW], weight [O, I / groups, k, k], bias [O] -> [NOHW].

    It is differentiable any number of times.
    """
    if torch.compiler.is_compiling():   # torch's own can be traced
        return F.conv2d(x, weight, bias, stride, padding, 1, groups)
    return _Convolution.apply(x, weight, bias, (stride, padding, False, (0, 0), groups))


def conv_transpose2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0) -> Tensor:
    """Do what torch.nn.functional.conv_transpose2d does: x [NIHW], weight [I, O, k, k], bias [O] -> [NOHW].

    It is differentiable any number of times.
    """
    if torch.compiler.is_compiling():
        return F.conv_transpose2d(x, weight, bias, stride, padding)
    return _Convolution.apply(x, weight, bias, (stride, padding, True, (0, 0), 1))


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> Tensor:
    if not _is_product(x, weight, options):
        return convolution(x, weight, bias, *_arguments(options))
    y = _product(x, weight, transposed=options[2])
    return y if bias is None else y.add_(bias[:, None, None])


def _is_product(x: Tensor, weight: Tensor, options: Options) -> bool:
    """Return whether a matrix product does this sooner than cuDNN, as in float32 without TF32: on an H200 1.2 to 3.8 times."""
    stride, padding, _, _, groups = options
    height, width = weight.shape[2:]
    return (x.device.type in PRODUCTS_ON and x.dtype == torch.float32 and not torch.backends.cudnn.allow_tf32
            and stride == groups == 1 and 1 < height == width == 2 * padding + 1 and min(weight.shape[:2]) >= LEAST_CHANNELS)


def _product(x: Tensor, weight: Tensor, transposed: bool) -> Tensor:
    """Convolve maps to maps of the same size: [NIHW] -> [NOHW], channels last in memory."""
    taps = weight.flip(2, 3).permute(2, 3, 0, 1) if transposed else weight.permute(2, 3, 1, 0)     # [k, k, I, O]
    (size, _, _, outputs), (n, _, height, width), side = taps.shape, x.shape, taps.shape[0] // 2
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, side, side, side, side)).contiguous()
    columns = padded.unfold(1, size, 1).unfold(2, size, 1).permute(0, 1, 2, 4, 5, 3)               # [N, H, W, k, k, I]
    matrix = taps.reshape(-1, outputs)
    at_once = max(MOST_BYTES // (height * width * matrix[:, 0].nbytes), 1)
    parts = [part.reshape(-1, len(matrix)) @ matrix for part in columns.split(at_once)]
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return whole.view(n, height, width, outputs).permute(0, 3, 1, 2)


def _arguments(options: Options) -> tuple:
    stride, padding, transposed, output_padding, groups = options
    return [stride] * 2, [padding] * 2, [1, 1], transposed, list(output_padding), groups


def _adjoint(options: Options, size: torch.Size, out_size: torch.Size, kernel: torch.Size) -> Options:
    """Return the options of the convolution that maps gradients by the output to those by the input. Sizes are [..., H, W]."""
    stride, padding, transposed, _, groups = options
    height, width = (0 if transposed else size[axis] - ((out_size[axis] - 1) * stride - 2 * padding + kernel[axis])
                     for axis in (-2, -1))
    return stride, padding, not transposed, (height, width), groups


class _Convolution(torch.autograd.Function):
    """x, weight, bias -> y. With g beside them, <convolution(x, weight), g> is linear in each of the three, so that all its
    gradients are convolutions again, or gradients by the weight."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options, ctx.outputs = options, None if bias is None else list(bias.shape)
        return _convolve(x, weight, bias, options)

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), options = ctx.saved_tensors, ctx.options
        for_x, for_weight, for_bias = wanted(ctx)[:3]
        adjoint = _adjoint(options, x.shape, g.shape, weight.shape)
        if not torch.is_grad_enabled():
            product = _product(g, weight, adjoint[2]) if for_x and _is_product(g, weight, adjoint) else None
            rest = [for_x and product is None, for_weight, for_bias]
            if not any(rest):
                return product, None, None, None
            dx, dweight, dbias = convolution_backward(g, x, weight, ctx.outputs, *_arguments(options), rest)
            return dx if product is None else product, dweight, dbias, None
        dx = dweight = None
        if for_x:
            dx = _Convolution.apply(g, weight, None, adjoint)
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
