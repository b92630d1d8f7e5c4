"""One call applies bias, activation, gain and clamp."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from imago.kernels.library import serves
from imago.kernels.ops import differentiable, empty_map, small_dtype, wanted


@dataclass(frozen=True)
class Activation:
    """`apply` takes (x, alpha, inplace); `gain` keeps the variance of N(0, 1) inputs about 1."""

    apply: Callable[[Tensor, float | None, bool], Tensor]
    gain: float = 1.0
    alpha: float | None = None     # slope for negative inputs
    homogeneous: bool = False      # apply(k * x) == k * apply(x) for k >= 0


ACTIVATIONS = {
    'linear': Activation(lambda x, alpha, inplace: x, homogeneous=True),
    'relu': Activation(lambda x, alpha, inplace: F.relu(x, inplace), sqrt(2), homogeneous=True),
    'lrelu': Activation(F.leaky_relu, sqrt(2), alpha=0.2, homogeneous=True),
    'tanh': Activation(lambda x, alpha, inplace: torch.tanh(x)),
    'sigmoid': Activation(lambda x, alpha, inplace: torch.sigmoid(x)),
    'elu': Activation(lambda x, alpha, inplace: F.elu(x)),
    'selu': Activation(lambda x, alpha, inplace: F.selu(x)),
    'softplus': Activation(lambda x, alpha, inplace: F.softplus(x)),
    'swish': Activation(lambda x, alpha, inplace: F.silu(x), sqrt(2)),
}


# PyTorch's exp and tanh are vectorised on a CPU, our kernels' are not; a library that is given for a test serves them anyway
SMOOTH_ON_CPU = bool(os.environ.get('IMAGO_KERNELS_LIBRARY'))


def bias_act(x: Tensor, b: Tensor | None = None, dim: int = 1, act: str = 'linear', alpha: float | None = None,
             gain: float | None = None, clamp: float | None = None) -> Tensor:
    """Return gain * act(x + b), clamped to [-clamp, clamp], with x's shape, type and memory format.

    x: any shape and floating type. b: [x.shape[dim]], added along `dim`. alpha: slope of 'lrelu' below 0.
    alpha and gain default to the activation's own, see ACTIVATIONS. It is differentiable any number of times.
    Raises ValueError for an unknown activation, a bias of another size, or a negative gain or clamp.
    """
    activation = _check(x, b, dim, act, alpha, gain, clamp)
    alpha = activation.alpha if alpha is None else alpha
    gain = activation.gain if gain is None else gain
    dim %= x.ndim
    if serves(x.device.type) and (activation.homogeneous or x.device.type != 'cpu' or SMOOTH_ON_CPU):
        b = None if b is None else b.to(small_dtype(x))
        return _bias_act(x, b, dim, NUMBERS[act], alpha or 0.0, gain, -1.0 if clamp is None else clamp)
    return _torch_bias_act(x, b, dim, activation, alpha, gain, clamp)


def _torch_bias_act(x: Tensor, b: Tensor | None, dim: int, activation: Activation, alpha: float | None, gain: float,
                    clamp: float | None) -> Tensor:
    b = None if b is None else _along(b.to(x.dtype), dim, x.ndim)
    if activation.homogeneous:
        # the gain goes first: it takes one pass with the bias, and the activation can then overwrite its input
        scaled = torch.add(b * gain, x, alpha=gain) if b is not None else x * gain if gain != 1 else x
        y = activation.apply(scaled, alpha, scaled is not x)
    else:
        y = activation.apply(x if b is None else x + b, alpha, False)
        y = y * gain if gain != 1 else y
    return y if clamp is None else y.clamp(-clamp, clamp)


def _along(b: Tensor, dim: int, ndim: int) -> Tensor:
    return b.reshape([-1 if axis == dim else 1 for axis in range(ndim)])


NUMBERS = {name: number for number, name in enumerate(ACTIVATIONS)}  # as csrc/contract.h counts them
_BY_NUMBER = list(ACTIVATIONS.values())

torch.library.define('imago::bias_act', '(Tensor x, Tensor? b, int dim, int act, float alpha, float gain, float clamp) '
                                        '-> Tensor')
torch.library.define('imago::bias_act_grad', '(Tensor g, Tensor ref, Tensor? b, int dim, int act, int order, float alpha, '
                                             'float gain, float clamp, bool sum) -> (Tensor, Tensor)')


@torch.library.register_fake('imago::bias_act')
def _fake(x, b, dim, act, alpha, gain, clamp) -> Tensor:
    return empty_map(x)


@torch.library.register_fake('imago::bias_act_grad')
def _fake_grad(g, ref, b, dim, act, order, alpha, gain, clamp, sum) -> tuple[Tensor, Tensor]:
    return empty_map(ref), ref.new_empty(ref.shape[dim] if sum else 0, dtype=small_dtype(ref))


def _setup(ctx, inputs: tuple, output: Tensor) -> None:
    x, b, *ctx.options = inputs
    # the sign of the output tells the slope of piecewise linear activations
    ctx.save_for_backward(*(output, None) if _BY_NUMBER[ctx.options[1]].homogeneous else (x, b))


def _backward(ctx, g: Tensor | None) -> tuple[Tensor | None, ...]:
    if g is None:
        return (None,) * 7
    ref, b = ctx.saved_tensors
    dim, act, *scalars = ctx.options
    if _BY_NUMBER[act].homogeneous:
        ref = ref.detach()  # a slope that depends on a sign alone has no gradient
    for_b = wanted(ctx)[1]
    dx, db = bias_act_grad(g, ref, b, dim, act, 1, *scalars, for_b)
    return dx, db if for_b else None, *[None] * 5


def _setup_grad(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    g, ref, b, *ctx.options, ctx.sum = inputs
    ctx.homogeneous = _BY_NUMBER[ctx.options[1]].homogeneous
    ctx.save_for_backward(None if ctx.homogeneous else g, ref, b)


def _backward_grad(ctx, v: Tensor | None, v_sum: Tensor | None) -> tuple[Tensor | None, ...]:
    """Differentiate dx = g * slope(ref + b), and db, its sum. Both are linear in g, and smooth activations depend on ref too."""
    g, ref, b = ctx.saved_tensors
    dim, act, order, *scalars = ctx.options
    if ctx.sum and v_sum is not None:
        v_sum = _along(v_sum.to(ref.dtype), dim, ref.ndim)
        # an expanded sum alone would be taken for a map in another layout
        v = empty_map(ref).copy_(v_sum) if v is None else v + v_sum
    if v is None:
        return (None,) * 10
    dg = bias_act_grad(v, ref, b, dim, act, order, *scalars, False)[0]
    if ctx.homogeneous:
        return dg, *[None] * 9
    if order == 1:
        dref, db = bias_act_grad(g * v, ref, b, dim, act, 2, *scalars, ctx.needs_input_grad[2])
    else:
        dref, db = _higher_derivative(g * v, ref, b, dim, act, order + 1, *scalars)
    return dg, dref, db if ctx.needs_input_grad[2] else None, *[None] * 7


def _higher_derivative(g: Tensor, x: Tensor, b: Tensor | None, dim: int, act: int, order: int, alpha: float, gain: float,
                       clamp: float) -> tuple[Tensor, Tensor]:
    """Do what bias_act_grad does, for any order, by differentiating plain PyTorch."""
    with torch.enable_grad():
        shifted = x.requires_grad_() * 1 if b is None else x + _along(b.to(x.dtype), dim, x.ndim)
        y = _torch_bias_act(shifted, None, dim, _BY_NUMBER[act], alpha, gain, None if clamp < 0 else clamp)
        for _ in range(order):
            y, = torch.autograd.grad(y.sum(), shifted, create_graph=True)
    dx = g * y
    return dx, dx.sum([axis for axis in range(x.ndim) if axis != dim], dtype=small_dtype(x))


_bias_act = differentiable('bias_act', _setup, _backward)
bias_act_grad = differentiable('bias_act_grad', _setup_grad, _backward_grad)


def _check(x: Tensor, b: Tensor | None, dim: int, act: str, alpha: float | None, gain: float | None,
           clamp: float | None) -> Activation:
    if act not in ACTIVATIONS:
        raise ValueError(f'activation {act!r} is unknown: take one of {", ".join(ACTIVATIONS)}')
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f'dim {dim} is out of range for x of shape {list(x.shape)}: take {-x.ndim} to {x.ndim - 1}')
    if b is not None and b.shape != (x.shape[dim],):
        raise ValueError(f'bias of shape {list(b.shape)} does not fit x of shape {list(x.shape)}: '
                         f'dim {dim} needs [{x.shape[dim]}]')
    if alpha is not None and ACTIVATIONS[act].alpha is None:
        raise ValueError(f'alpha {alpha} has no meaning for {act!r}: only lrelu takes it')
    for name, value in ('gain', gain), ('clamp', clamp):
        if value is not None and value < 0:
            raise ValueError(f'{name} {value} is negative: give a value of at least 0, or None')
    return ACTIVATIONS[act]
