"""Modulated convolutions scale each sample and channel of their input."""

import torch
from torch import Tensor

from imago.kernels.library import serves
from imago.kernels.ops import differentiable, empty_map, small_dtype, wanted


def modulate(x: Tensor, scale: Tensor) -> Tensor:
    """Return x [NCHW] times scale [N, C], of x's type and layout. It is differentiable any number of times.

    Raises ValueError if scale is not [N, C].
    """
    if x.ndim != 4 or scale.shape != x.shape[:2]:
        raise ValueError(f'scale of shape {list(scale.shape)} does not fit x of shape {list(x.shape)}: '
                         'x must be [N, C, H, W] and scale [N, C]')
    if serves(x.device.type):
        return _modulate(x, scale.to(small_dtype(x)))
    return x * scale.to(x.dtype)[:, :, None, None]


torch.library.define('imago::modulate', '(Tensor x, Tensor scale) -> Tensor')
torch.library.define('imago::modulate_grad', '(Tensor g, Tensor x, Tensor scale, bool for_scale) -> (Tensor, Tensor)')


@torch.library.register_fake('imago::modulate')
def _fake(x, scale) -> Tensor:
    return empty_map(x)


@torch.library.register_fake('imago::modulate_grad')
def _fake_grad(g, x, scale, for_scale) -> tuple[Tensor, Tensor]:
    return empty_map(x), scale.new_empty(x.shape[0] if for_scale else 0, x.shape[1])


def _setup(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, g: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    if g is None:
        return None, None
    for_scale = wanted(ctx)[1]
    dx, dscale = modulate_grad(g, *ctx.saved_tensors, for_scale)
    return dx, dscale if for_scale else None


def _setup_grad(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.sum = inputs
    ctx.save_for_backward(*tensors)


def _backward_grad(ctx, v: Tensor | None, v_sum: Tensor | None) -> tuple[Tensor | None, ...]:
    """Differentiate dx = g * scale and dscale = sum(g * x), all by passes that keep the maps' layout."""
    g, x, scale = ctx.saved_tensors
    for_g, for_x, for_scale, _ = wanted(ctx)
    dg = dx = dscale = None
    if v is not None:
        dg, dscale = modulate_grad(v, g, scale, for_scale)
    if v_sum is not None and ctx.sum:
        if for_g:
            dg = _modulate(x, v_sum) if dg is None else dg + _modulate(x, v_sum)
        dx = _modulate(g, v_sum) if for_x else None
    return dg, dx, dscale if for_scale else None, None


_modulate = differentiable('modulate', _setup, _backward)
modulate_grad = differentiable('modulate_grad', _setup_grad, _backward_grad)
