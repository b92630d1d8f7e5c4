"""Bias, activation, gain and clamp in one call."""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Activation:
    """`apply(x, alpha, inplace)`; `gain` keeps the variance of N(0, 1) inputs about 1."""

    apply: Callable[[Tensor, float, bool], Tensor]
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


def bias_act(x: Tensor, b: Tensor | None = None, dim: int = 1, act: str = 'linear', alpha: float | None = None,
             gain: float | None = None, clamp: float | None = None) -> Tensor:
    """gain * act(x + b), clamped to [-clamp, clamp]. Differentiable any number of times.

    x: any shape and floating type. b: [x.shape[dim]], added along `dim` in x's type. alpha: slope of 'lrelu' below 0.
    alpha and gain default to the activation's own, see ACTIVATIONS. Keeps x's shape, type and memory format.
    ValueError for an unknown activation, a bias of another size, or a negative gain or clamp.
    """
    activation = _check(x, b, dim, act, alpha, gain, clamp)
    alpha = activation.alpha if alpha is None else alpha
    gain = activation.gain if gain is None else gain
    if b is not None:
        b = b.to(x.dtype).reshape([-1 if axis == dim % x.ndim else 1 for axis in range(x.ndim)])

    if activation.homogeneous:
        # the gain goes first: one pass with the bias, and the activation can then overwrite its input
        scaled = torch.add(b * gain, x, alpha=gain) if b is not None else x * gain if gain != 1 else x
        y = activation.apply(scaled, alpha, scaled is not x)
    else:
        y = activation.apply(x if b is None else x + b, alpha, False)
        y = y * gain if gain != 1 else y
    return y if clamp is None else y.clamp(-clamp, clamp)


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
