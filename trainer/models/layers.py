"""Several families share these layers. All learn at an equalised rate: weights start as N(0, 1) and are scaled at run time.

Karras et al. 2018, "Progressive Growing of GANs", section 4.1.
"""

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imago.kernels import bias_act, conv2d, setup_filter, upfirdn2d
from imago.kernels.bias_act import ACTIVATIONS

DTYPES = {'none': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
FP16_CLAMP = 256.0


def uniform(*shape: int, generator: torch.Generator) -> Tensor:
    """Draw values from U[-1, 1], of shape [*shape]."""
    return 2 * torch.rand(*shape, generator=generator) - 1


LATENTS: dict[str, Callable[..., Tensor]] = {'normal': torch.randn, 'uniform': uniform}   # distributions of z, by name


class FullyConnected(nn.Module):
    """Maps [N, in] to [N, out]. Parameters are stored 1 / lr_multiplier times larger, so that they learn slower."""

    def __init__(self, in_features: int, out_features: int, act: str = 'linear', lr_multiplier: float = 1.0,
                 bias_init: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full([out_features], bias_init / lr_multiplier))
        self.act, self.lr_multiplier = act, lr_multiplier
        self.weight_gain = lr_multiplier / sqrt(in_features)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, in] -> [N, out]"""
        # x is scaled rather than the weight, as it is smaller.
        return bias_act(F.linear(x * self.weight_gain, self.weight), self.bias * self.lr_multiplier, act=self.act)


class Conv2d(nn.Module):
    """Maps [NCHW] to [NCHW] of the same size, or half of it with `down`; then applies bias, activation, `gain` and clamp.

    It computes in the type of its input.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, act: str = 'lrelu', down: bool = False,
                 gain: float = 1.0, clamp: float | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.act, self.down, self.padding = act, down, kernel // 2
        self.weight_gain = 1 / sqrt(in_channels * kernel ** 2)
        self.gain, self.clamp = ACTIVATIONS[act].gain * gain, clamp and clamp * gain
        if down:
            self.register_buffer('resample_filter', setup_filter([1, 3, 3, 1]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, in, H, W] -> [N, out, H, W], or [N, out, H/2, W/2] with `down`"""
        weight = (self.weight * self.weight_gain).to(x.dtype)
        if self.down:
            # The blur of 4 taps takes 3 pixels away, of which the stride of 2 needs only 2 back.
            x = upfirdn2d(x, self.resample_filter, padding=self.padding + 1)
            x = conv2d(x, weight, stride=2)
        else:
            x = conv2d(x, weight, padding=self.padding)
        return bias_act(x, self.bias, act=self.act, gain=self.gain, clamp=self.clamp)


class PlainConv2d(nn.Conv2d):
    """Does what torch's own does, in the type of its input, and has fast second gradients. Strides and paddings are square."""

    def forward(self, x: Tensor) -> Tensor:
        """x [NIHW] -> [NOHW]"""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return conv2d(x, self.weight.to(x.dtype), bias, self.stride[0], self.padding[0], self.groups)


class HalfSizeShortcut(nn.Module):
    """Blurs and halves maps, then convolves them by 1x1 taps without bias: [NCHW] -> [N, out, H/2, W/2]."""

    def __init__(self, in_channels: int, out_channels: int, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.weight_gain = gain / sqrt(in_channels)
        self.register_buffer('resample_filter', setup_filter([1, 3, 3, 1]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [NCHW] -> [N, out, H/2, W/2]"""
        x = upfirdn2d(x, self.resample_filter, down=2, padding=1)
        return conv2d(x, (self.weight * self.weight_gain).to(x.dtype))


def normalize_second_moment(x: Tensor) -> Tensor:
    """Scale each row of [N, C] to a mean square of 1."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


def append_minibatch_stddev(x: Tensor, group: int) -> Tensor:
    """Append one more map, the mean standard deviation over the sample's group: [NCHW] -> [N, C + 1, H, W].

    Groups are contiguous runs of `group` samples, so micro-batches of whole groups give what the whole batch gives.
    If `group` does not divide N, groups are as large as the largest smaller divisor. Karras et al. 2018, section 3.
    """
    count = len(x)
    size = next(size for size in range(min(group, count), 0, -1) if count % size == 0)
    grouped = x.reshape(count // size, size, -1)
    deviation = (grouped.var(dim=1, unbiased=False) + 1e-8).sqrt().mean(dim=1)  # [groups]
    deviation = deviation.repeat_interleave(size).reshape(count, 1, 1, 1)
    return torch.cat([x, deviation.expand(-1, 1, *x.shape[2:])], dim=1)


def block_channels(channel_base: int, channel_max: int, doublings: int) -> list[int]:
    """Count the channels of each block, coarsest first: channel_base / (4 * 2**i), at most channel_max.

    Raises ValueError if a block would have none.
    """
    if channel_base < 4 << doublings:
        raise ValueError(f'channel_base {channel_base} leaves the finest block no channels: give at least '
                         f'{4 << doublings}')
    return [min(channel_base // (4 << i), channel_max) for i in range(doublings + 1)]


def block_dtype(low_precision: str, low_precision_blocks: int, index: int, doublings: int) -> torch.dtype:
    """Return the type of block `index`. Block 0 is the coarsest, always in float32; block `doublings` is the finest."""
    return DTYPES[low_precision] if index > max(doublings - low_precision_blocks, 0) else torch.float32


def as_maps(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert x [NCHW] to `dtype`, and lay it out in memory as [N, H, W, C], for which convolutions and filters are fastest."""
    return x.to(dtype, memory_format=torch.channels_last)


def default_clamp(low_precision: str, conv_clamp: float | None) -> float | None:
    return FP16_CLAMP if conv_clamp is None and low_precision == 'fp16' else conv_clamp


def checked_latents(latents: str) -> str:
    """Return `latents` as it is. Raises ValueError for an unknown distribution."""
    if latents not in LATENTS:
        raise ValueError(f'latents {latents!r} are unknown: take one of {", ".join(LATENTS)}')
    return latents


def check_outputs(num_outputs: int, c_dim: int) -> None:
    """Raise ValueError if a discriminator would have to be conditional and classify at once."""
    if num_outputs > 1 and c_dim:
        raise ValueError(f'num_outputs {num_outputs} with c_dim {c_dim}: a discriminator with more outputs than its logit '
                         'takes no classes; give c_dim 0')
