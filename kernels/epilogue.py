"""One pass does what follows the convolution in a modulated layer: FIR filter, demodulation, noise, bias, leaky ReLU."""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

from imago.kernels.bias_act import NUMBERS, bias_act, bias_act_grad
from imago.kernels.library import serves
from imago.kernels.modulate import modulate, modulate_grad
from imago.kernels.ops import differentiable, empty_map, small_dtype, wanted
from imago.kernels.upfirdn2d import Padding, gradient_padding, resample, upfirdn2d


def epilogue(x: Tensor, scale: Tensor | None = None, noise: Tensor | None = None, b: Tensor | None = None,
             taps: Tensor | None = None, padding: Padding = (0, 0, 0, 0), flip_filter: bool = False, fir_gain: float = 1.0,
             alpha: float = 0.2, gain: float = sqrt(2), clamp: float | None = None) -> Tensor:
    """Return clamp(gain * lrelu(FIR(x) * scale + noise + b)), [NCHW] of x's type and layout.

    x: [NCHW]. scale: [N, C], not 0. noise: [N or 1, 1, H, W] of the output. b: [C]. alpha: slope below 0, 1 for no lrelu.
    taps: [height, width], or None for no filter; padding (left, right, top, bottom), flip_filter, fir_gain: `upfirdn2d`'s.
    It is differentiable any number of times, and keeps only its output for that. Karras et al. 2020, "Analyzing and Improving
    ...", section 2.2. Raises ValueError for tensors that do not fit, and for an alpha or gain that is not positive.
    """
    _check(x, scale, noise, b, taps, padding, alpha, gain, clamp)
    if taps is None and scale is None and noise is None:
        return bias_act(x, b, act='lrelu', alpha=alpha, gain=gain, clamp=clamp)
    if serves(x.device.type):
        small = small_dtype(x)
        scale, noise, b, taps = (None if t is None else t.to(x.device, small) for t in (scale, noise, b, taps))
        return _epilogue(x, taps, *padding, flip_filter, fir_gain, scale, noise, b, alpha, gain,
                         -1.0 if clamp is None else clamp)
    x = x if taps is None else upfirdn2d(x, taps, padding=padding, flip_filter=flip_filter, gain=fir_gain)
    x = x if scale is None else modulate(x, scale)
    x = x if noise is None else x + noise.to(x.dtype)
    return bias_act(x, b, act='lrelu', alpha=alpha, gain=gain, clamp=clamp)


def _check(x: Tensor, scale: Tensor | None, noise: Tensor | None, b: Tensor | None, taps: Tensor | None, padding: Padding,
           alpha: float, gain: float, clamp: float | None) -> None:
    if x.ndim != 4:
        raise ValueError(f'x has shape {list(x.shape)}: epilogue needs [N, C, H, W]')
    n, c, *size = x.shape
    if taps is not None:
        if taps.ndim != 2 or taps.numel() == 0:
            raise ValueError(f'taps have shape {list(taps.shape)}: epilogue needs [height, width], not empty')
        size = list(_out_size(size, taps, padding))
        if min(size) < 1:
            raise ValueError(f'epilogue of {list(x.shape)} with {list(taps.shape)} taps and padding {padding} would be '
                             f'empty ({size[0]}x{size[1]}): pad more or crop less')
    for name, tensor, shapes in (('scale', scale, [(n, c)]), ('noise', noise, [(n, 1, *size), (1, 1, *size)]),
                                 ('b', b, [(c,)])):
        if tensor is not None and tuple(tensor.shape) not in shapes:
            raise ValueError(f'{name} of shape {list(tensor.shape)} does not fit x of shape {list(x.shape)}: '
                             f'give {" or ".join(str(list(shape)) for shape in shapes)}')
    for name, value in ('alpha', alpha), ('gain', gain):
        if value <= 0:
            raise ValueError(f'{name} {value} is not positive: epilogue recovers its input from its output')
    if clamp is not None and clamp < 0:
        raise ValueError(f'clamp {clamp} is negative: give a value of at least 0, or None')


def _out_size(size: Sequence[int], taps: Tensor, padding: Padding) -> tuple[int, int]:
    left, right, top, bottom = padding
    return size[0] + top + bottom - taps.shape[0] + 1, size[1] + left + right - taps.shape[1] + 1


torch.library.define('imago::epilogue', '(Tensor x, Tensor? taps, int left, int right, int top, int bottom, bool flip, '
                                        'float fir_gain, Tensor? scale, Tensor? noise, Tensor? b, float alpha, float gain, '
                                        'float clamp) -> Tensor')
torch.library.define('imago::epilogue_grad', '(Tensor g, Tensor y, Tensor? scale, Tensor? noise, Tensor? b, float alpha, '
                                             'float gain, float clamp, bool for_scale, bool for_noise, bool for_b) '
                                             '-> (Tensor, Tensor, Tensor, Tensor)')


@torch.library.register_fake('imago::epilogue')
def _fake(x, taps, left, right, top, bottom, flip, fir_gain, scale, noise, b, alpha, gain, clamp) -> Tensor:
    size = x.shape[2:] if taps is None else _out_size(x.shape[2:], taps, (left, right, top, bottom))
    return empty_map(x, (*x.shape[:2], *size))


@torch.library.register_fake('imago::epilogue_grad')
def _fake_grad(g, y, scale, noise, b, alpha, gain, clamp, for_scale, for_noise, for_b) -> tuple[Tensor, ...]:
    n, c, height, width = y.shape
    sums = ((n if for_scale else 0, c), (n if for_noise else 0, 1, height, width), (c if for_b else 0,))
    return empty_map(y), *(y.new_empty(shape, dtype=small_dtype(y)) for shape in sums)


def _setup(ctx, inputs: tuple, output: Tensor) -> None:
    x, taps, *padding, ctx.flip, ctx.fir_gain, scale, noise, b, ctx.alpha, ctx.gain, ctx.clamp = inputs
    ctx.save_for_backward(output, taps, scale, noise, b)
    ctx.padding, ctx.size = padding, x.shape


def _backward(ctx, g: Tensor | None) -> tuple[Tensor | None, ...]:
    if g is None:
        return (None,) * 14
    y, taps, scale, noise, b = ctx.saved_tensors
    asked = wanted(ctx)[8:11]
    if torch.is_grad_enabled():
        dx, dscale, dnoise, db = _differentiable_grad(ctx, g, y, scale, noise, b, asked)
    else:
        dx, dscale, dnoise, db = torch.ops.imago.epilogue_grad(g, y, scale, noise, b, ctx.alpha, ctx.gain, ctx.clamp, *asked)
    if taps is not None:
        padding = gradient_padding(ctx.size, y.shape, taps.shape, (1, 1), (1, 1), ctx.padding)
        dx = resample(dx, taps, (1, 1), (1, 1), padding, not ctx.flip, ctx.fir_gain)
    if asked[1] and len(noise) < len(dnoise):
        dnoise = dnoise.sum(dim=0, keepdim=True)
    return (dx, *[None] * 7, *(grad if want else None for grad, want in zip((dscale, dnoise, db), asked)), *[None] * 3)


def _differentiable_grad(ctx, g: Tensor, y: Tensor, scale: Tensor | None, noise: Tensor | None, b: Tensor | None,
                         asked: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Do what epilogue_grad does, by operations that can be differentiated again."""
    for_scale, for_noise, for_b = asked
    du, db = bias_act_grad(g, y, None, 1, NUMBERS['lrelu'], 1, ctx.alpha, ctx.gain, ctx.clamp, for_b)
    dnoise = du.sum(dim=1, keepdim=True, dtype=small_dtype(y)) if for_noise else None
    if not for_scale:
        return du if scale is None else modulate(du, scale), None, dnoise, db
    u = bias_act(y, act='lrelu', alpha=1 / ctx.alpha, gain=1 / ctx.gain)  # activation and gain are undone
    v = epilogue(u, None, None if noise is None else -noise, None if b is None else -b, alpha=1, gain=1)
    dv, dscale = modulate_grad(du, v, scale, True)
    return dv, dscale / scale, dnoise, db


_epilogue = differentiable('epilogue', _setup, _backward)
