"""A StyleGAN layer ends so: noise, bias, leaky ReLU, then instance normalisation with a style's scale and shift."""

from math import sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from imago.kernels.library import serves
from imago.kernels.ops import differentiable, empty_map, small_dtype, wanted


def adain(x: Tensor, scale: Tensor, shift: Tensor, noise: Tensor | None = None, b: Tensor | None = None,
          alpha: float = 0.2, gain: float = sqrt(2), eps: float = 1e-8) -> Tensor:
    """Return norm(gain * lrelu(x + noise + b)) * scale + shift, [NCHW] of x's type and layout.

    `norm` brings each channel of each picture to mean 0 and variance 1. Huang & Belongie 2017, equation 8; Karras et al. 2019.
    x: [NCHW]. scale, shift: [N, C]. noise: [N or 1, 1, H, W]. b: [C]. alpha: slope below 0; 1 makes lrelu the identity.
    It is differentiable any number of times. Raises ValueError for tensors that do not fit.
    """
    n, c, *size = x.shape if x.ndim == 4 else (0, 0)
    for name, tensor, shapes in (('x', x, [(n, c, *size)] if size else ['[N, C, H, W]']), ('scale', scale, [(n, c)]),
                                 ('shift', shift, [(n, c)]), ('noise', noise, [(n, 1, *size), (1, 1, *size)]),
                                 ('b', b, [(c,)])):
        if tensor is not None and tuple(tensor.shape) not in shapes:
            raise ValueError(f'{name} of shape {list(tensor.shape)} does not fit x of shape {list(x.shape)}: '
                             f'give {" or ".join(str(shape) for shape in shapes)}')
    small = small_dtype(x)
    scale, shift = scale.to(small), shift.to(small)
    noise, b = (None if tensor is None else tensor.to(small) for tensor in (noise, b))
    return (_adain if serves(x.device.type) else _torch_adain)(x, noise, b, scale, shift, alpha, gain, eps)[0]


def _torch_adain(x: Tensor, noise: Tensor | None, b: Tensor | None, scale: Tensor, shift: Tensor, alpha: float, gain: float,
                 eps: float) -> tuple[Tensor]:
    u = x.to(scale.dtype)
    u = u if noise is None else u + noise
    u = u if b is None else u + b[:, None, None]
    u = F.leaky_relu(u, alpha) * gain
    u = u - u[:, :, :1, :1].detach()  # it does not change the result: sums of large numbers would lose digits
    u = u - u.mean(dim=(2, 3), keepdim=True)
    y = u * (u.square().mean(dim=(2, 3), keepdim=True) + eps).rsqrt() * scale[:, :, None, None] + shift[:, :, None, None]
    return y.to(x.dtype),


torch.library.define('imago::adain', '(Tensor x, Tensor? noise, Tensor? b, Tensor scale, Tensor shift, float alpha, '
                                     'float gain, float eps) -> (Tensor, Tensor, Tensor)')
torch.library.define('imago::adain_grad', '(Tensor g, Tensor x, Tensor? noise, Tensor? b, Tensor scale, Tensor mean, '
                                          'Tensor rstd, float alpha, float gain, bool for_noise, bool for_b) '
                                          '-> (Tensor, Tensor, Tensor, Tensor, Tensor)')


@torch.library.register_fake('imago::adain')
def _fake(x, noise, b, scale, shift, alpha, gain, eps) -> tuple[Tensor, Tensor, Tensor]:
    return empty_map(x), scale.new_empty(scale.shape), scale.new_empty(scale.shape)


@torch.library.register_fake('imago::adain_grad')
def _fake_grad(g, x, noise, b, scale, mean, rstd, alpha, gain, for_noise, for_b) -> tuple[Tensor, ...]:
    n, c, height, width = x.shape
    sums = (n, c), (n, c), (n if for_noise else 0, 1, height, width), (c if for_b else 0,)
    return empty_map(x), *(scale.new_empty(shape) for shape in sums)


def _setup(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, noise, b, scale, shift, *ctx.options = inputs
    ctx.save_for_backward(x, noise, b, scale, shift, *output[1:])


def _backward(ctx, g: Tensor | None, *unused: None) -> tuple[Tensor | None, ...]:
    x, noise, b, scale, shift, mean, rstd = ctx.saved_tensors
    if g is None:
        return (None,) * 8
    asked = wanted(ctx)[:5]
    if torch.is_grad_enabled():  # this gradient is to be differentiated again
        inputs = (x, noise, b, scale, shift)
        y, = _torch_adain(*inputs, *ctx.options)
        found = iter(torch.autograd.grad(y, [tensor for tensor, want in zip(inputs, asked) if want], g, create_graph=True))
        return *(next(found) if want else None for want in asked), *[None] * 3
    dx, dscale, dshift, dnoise, db = torch.ops.imago.adain_grad(g, x, noise, b, scale, mean, rstd, *ctx.options[:2], *asked[1:3])
    if asked[1] and len(noise) < len(dnoise):
        dnoise = dnoise.sum(dim=0, keepdim=True)
    grads = (dx, dnoise, db, dscale, dshift)
    return *(grad if want else None for grad, want in zip(grads, asked)), *[None] * 3


_adain = differentiable('adain', _setup, _backward)
