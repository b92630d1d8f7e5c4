"""Progressive GAN. Karras et al. 2018, "Progressive Growing of GANs for Improved Quality, Stability, and Variation".

The legend is that of growing.py.
"""

import re
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imago.kernels import bias_act, conv_transpose2d
from imago.trainer.models.growing import (
    GrowingDiscriminator,
    GrowingSynthesis,
    before_gain,
    learn_after_gain,
    published_discriminator,
    up_conv2d,
)
from imago.trainer.models.layers import (
    Conv2d,
    FullyConnected,
    default_clamp,
    normalize_second_moment,
)

GAINED = re.compile(r'layers\.\d+\.bias')    # names in G, see `before_gain`


class LatentLayer(nn.Module):
    """Maps latents [N, in] to the coarsest maps [NCHW], adds a bias to each channel, and activates them."""

    def __init__(self, in_features: int, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, in_features, *size))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.weight_gain = 1 / sqrt(in_features * size[0] * size[1])

    def forward(self, z: Tensor) -> Tensor:
        """z [N, in] -> [N, channels, *size]"""
        weight = (self.weight * self.weight_gain).transpose(0, 1)
        return bias_act(conv_transpose2d(z[:, :, None, None], weight), self.bias, act='lrelu')


class UpConv2d(Conv2d):
    """Doubles maps by the nearest pixel, convolves them, adds the bias and activates: [NIHW] -> [N, O, 2H, 2W]."""

    def forward(self, x: Tensor) -> Tensor:
        """x [NIHW] -> [N, O, 2H, 2W]"""
        x = up_conv2d(x, self.weight * self.weight_gain)
        return bias_act(x, self.bias, act=self.act, gain=self.gain, clamp=self.clamp)


class PooledConv2d(Conv2d):
    """Convolves maps, adds the bias, activates, then takes means of 2x2 pixels: [NIHW] -> [N, O, H/2, W/2]."""

    def forward(self, x: Tensor) -> Tensor:
        """x [NIHW] -> [N, O, H/2, W/2]"""
        return F.avg_pool2d(super().forward(x), 2)


def pixel_norm(x: Tensor) -> Tensor:
    """Scale each pixel of [NCHW] to a mean square of 1 over its channels. Section 4.2."""
    return x * (x.square().mean(dim=1, keepdim=True, dtype=torch.float32) + 1e-8).rsqrt().to(x.dtype)


class Generator(GrowingSynthesis):
    """resolution: (H, W). The `low_precision_blocks` finest sizes compute in `low_precision`; the coarsest never does."""

    num_ws = 0

    def __init__(self, z_dim: int, c_dim: int, resolution: tuple[int, int], img_channels: int, channel_base: int = 16384,
                 channel_max: int = 512, low_precision: str = 'none', low_precision_blocks: int = 0) -> None:
        super().__init__(resolution, img_channels, channel_base, channel_max, low_precision, low_precision_blocks)
        self.z_dim, self.c_dim, self.resolution = z_dim, c_dim, tuple(resolution)
        self.tail = f'layers.{2 * self.doublings}', f'layers.{2 * self.doublings + 1}', 'torgb'
        clamp, channels = default_clamp(low_precision, None), self.channels
        if c_dim:
            self.embed = FullyConnected(c_dim, z_dim)
        self.layers.append(LatentLayer(z_dim * (2 if c_dim else 1), channels[0], self.base))
        for i in range(self.doublings + 1):
            if i:
                self.layers.append(UpConv2d(channels[i - 1], channels[i], 3, clamp=clamp))
            self.layers.append(Conv2d(channels[i], channels[i], 3, clamp=clamp))
        learn_after_gain(self, GAINED)

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        """z [N, z_dim], c [N, c_dim] -> pictures [N, img_channels, H >> f, W >> f], float32, about [-1, 1]."""
        x = normalize_second_moment(z)
        if self.c_dim:
            x = torch.cat([x, normalize_second_moment(self.embed(c))], dim=1)
        return self.grow(x, lambda index, x: pixel_norm(self.layers[index](x)))


class Discriminator(GrowingDiscriminator):
    """Table 2, right."""

    half_size_layer = PooledConv2d


def from_published(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give each published tensor of G or D its name here, for `load_state_dict`. Its shape [...] stays."""
    if 'input0.weight' in state_dict:
        return published_discriminator(state_dict)
    renamed = {}
    for name, tensor in state_dict.items():
        if name.startswith('layer'):
            name = name.replace('layer', 'layers.')
        renamed[name.replace('output', 'torgb.')] = tensor
    # The published layer convolves a padded pixel.
    renamed['layers.0.weight'] = renamed['layers.0.weight'].flip([2, 3])
    return before_gain(renamed, GAINED)
