"""This file holds what the two growing families share. Karras et al. 2018, "Progressive Growing of GANs", section 2.

Legend: N batch, C channels (I in, O out), H W pixels of full size, z [N, z_dim] latents, c [N, c_dim] one-hot labels.
Size i is base * 2**i px, coarsest first. `lod` is the level of detail: 0 means full size, 1 half of it ...; in between, the
finer size fades in. G makes pictures of H >> f, W >> f px with f = floor(lod), and D reads them.
"""

import re
from collections.abc import Callable
from math import floor, sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imago.kernels import conv2d, conv_transpose2d
from imago.trainer.config.resolution import base_and_doublings
from imago.trainer.models.layers import (
    Conv2d,
    FullyConnected,
    as_maps,
    block_channels,
    block_dtype,
    check_outputs,
    default_clamp,
    normalize_second_moment,
)
from imago.trainer.models.stylegan2 import DiscriminatorEpilogue

GAINED = re.compile(r'(fromrgb\.\d+|blocks\.\d+\.\d+|blocks\.0\.conv|blocks\.0\.fc)\.bias')   # names in D, see `before_gain`


class Growing(nn.Module):
    """A network has `doublings` + 1 sizes, of which those up to `lod` are in use. The trainer sets `lod`."""

    def __init__(self, resolution: tuple[int, int], channel_base: int, channel_max: int, low_precision: str,
                 low_precision_blocks: int) -> None:
        super().__init__()
        self.base, self.doublings = base_and_doublings(resolution)
        self.channels = block_channels(channel_base, channel_max, self.doublings)
        self.dtypes = [block_dtype(low_precision, low_precision_blocks, i, self.doublings)
                       for i in range(self.doublings + 1)]
        # It is as exact as the schedule computes it: if it were rounded to float32, a level could begin early.
        self.register_buffer('lod', torch.zeros([], dtype=torch.float64))

    def _apply(self, fn: Callable, recurse: bool = True) -> 'Growing':
        """Move all but `lod`, if that is on the CPU: what it decides is decided there, in each forward."""
        lod = self.lod
        super()._apply(fn, recurse)
        if lod.device.type == 'cpu':
            self.lod = lod
        return self

    def stage(self) -> tuple[int, float]:
        """Return (index of the finest size in use, weight of the size below it). Raises ValueError for an impossible lod."""
        lod = self.lod.item()
        if not 0 <= lod <= self.doublings:
            raise ValueError(f'lod {lod:g} does not exist: this network has 0 (full size) to {self.doublings}')
        return self.doublings - floor(lod), lod % 1


class GrowingSynthesis(Growing):
    """Has two layers and a picture for each size. The family appends its `layers`, coarsest first."""

    def __init__(self, resolution: tuple[int, int], img_channels: int, channel_base: int, channel_max: int,
                 low_precision: str, low_precision_blocks: int) -> None:
        super().__init__(resolution, channel_base, channel_max, low_precision, low_precision_blocks)
        clamp = default_clamp(low_precision, None)
        self.layers = nn.ModuleList()
        self.torgb = nn.ModuleList(Conv2d(features, img_channels, 1, act='linear', clamp=clamp)
                                   for features in self.channels)

    def grow(self, x: Tensor | None, run_layer: Callable[[int, Tensor | None], Tensor]) -> Tensor:
        """Run the layers by run_layer(index, x); layer 0 gets this x. Returns [N, img_channels, H >> f, W >> f], float32."""
        finest, fade = self.stage()
        for i in range(finest + 1):
            coarse, x = x, as_maps(x, self.dtypes[i]) if i else x
            x = run_layer(2 * i + 1, run_layer(2 * i, x))
        img = self.torgb[finest](x).float()  # [N, img_channels, H >> f, W >> f]
        if fade:
            below = self.torgb[finest - 1](coarse).float()
            img = img.lerp(F.interpolate(below, scale_factor=2), fade)  # nearest
        return img


def up_conv2d(x: Tensor, weight: Tensor) -> Tensor:
    """Double by the nearest pixel, then convolve by 3x3 taps: x [NIHW], weight [OI33] -> [N, O, 2H, 2W].

    Both are done as one convolution of 4x4 taps and stride 2.
    """
    taps = 4 * F.avg_pool2d(weight, 2, stride=1, padding=1).flip([2, 3])
    return conv_transpose2d(x, taps.transpose(0, 1).to(x.dtype), stride=2, padding=1)


def conv_down2d(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve by 3x3 taps, then take 2x2 means: x [NIHW], weight [OI33] -> [N, O, H/2, W/2].

    Both are done as one convolution of 4x4 taps and stride 2.
    """
    return conv2d(x, F.avg_pool2d(weight, 2, stride=1, padding=1).to(x.dtype), stride=2, padding=1)


class GrowingDiscriminator(Growing):
    """Maps pictures and c to logits, conditional by projection (Miyato & Koyama 2018). The family says how a size is halved."""

    half_size_layer: type[Conv2d]

    def __init__(self, c_dim: int, resolution: tuple[int, int], img_channels: int, channel_base: int = 16384,
                 channel_max: int = 512, mbstd_group: int = 4, low_precision: str = 'none', low_precision_blocks: int = 0,
                 num_outputs: int = 1) -> None:
        super().__init__(resolution, channel_base, channel_max, low_precision, low_precision_blocks)
        check_outputs(num_outputs, c_dim)
        self.c_dim, self.resolution = c_dim, tuple(resolution)
        clamp, channels = default_clamp(low_precision, None), self.channels
        self.fromrgb = nn.ModuleList(Conv2d(img_channels, features, 1, clamp=clamp) for features in channels)
        outputs = channels[0] if c_dim else num_outputs
        self.blocks = nn.ModuleList([DiscriminatorEpilogue(channels[0], self.base, 0, outputs, mbstd_group, clamp)])
        for i in range(1, self.doublings + 1):
            self.blocks.append(nn.Sequential(Conv2d(channels[i], channels[i], 3, clamp=clamp),
                                             self.half_size_layer(channels[i], channels[i - 1], 3, clamp=clamp)))
        if c_dim:
            self.embed = FullyConnected(c_dim, channels[0])
        learn_after_gain(self, GAINED)

    def forward(self, img: Tensor, c: Tensor) -> Tensor:
        """img [N, img_channels, H >> f, W >> f] in [-1, 1] -> logits [N, num_outputs], float32."""
        finest, fade = self.stage()
        x = self._features(img, finest)
        for i in range(finest, -1, -1):
            x = self.blocks[i](as_maps(x, self.dtypes[i]))
            if fade and i == finest:
                below = self._features(F.avg_pool2d(img, 2), i - 1)
                x = x.to(below.dtype).lerp(below, fade)
        if self.c_dim:
            label = normalize_second_moment(self.embed(c))  # [N, C]
            x = (x * label).sum(dim=1, keepdim=True) / sqrt(label.shape[1])
        return x

    def _features(self, img: Tensor, i: int) -> Tensor:
        return self.fromrgb[i](as_maps(img, self.dtypes[i]))


def published_discriminator(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give each published tensor [...] of D its name here, for `load_state_dict`. Published sizes count from the finest."""
    doublings = sum(name.startswith('input') for name in state_dict) // 2 - 1
    last = 2 * doublings + 2
    renamed = {'lod': state_dict['lod']}
    for part in 'weight', 'bias':
        for i in range(doublings + 1):
            renamed[f'fromrgb.{i}.{part}'] = state_dict[f'input{doublings - i}.{part}']
        for index in range(last - 2):
            renamed[f'blocks.{doublings - index // 2}.{index % 2}.{part}'] = state_dict[f'layer{index}.{part}']
        for name, index in ('conv', last - 2), ('fc', last - 1), ('out', last):
            renamed[f'blocks.0.{name}.{part}'] = state_dict[f'layer{index}.{part}']
    return before_gain(renamed, GAINED)


def before_gain(published: dict[str, Tensor], gained: re.Pattern) -> dict[str, Tensor]:
    """Divide by sqrt(2) the biases and noise strengths [...] whose names here match `gained`.

    Published layers add these after the gain of sqrt(2), the layers here before it.
    """
    return {name: tensor / sqrt(2) if gained.fullmatch(name) else tensor for name, tensor in published.items()}


def learn_after_gain(network: nn.Module, gained: re.Pattern) -> None:
    """Let those biases and noise strengths learn sqrt(2) slower, as if they were added after the gain."""
    for name, _ in network.named_parameters():
        if gained.fullmatch(name):
            module, _, own = name.rpartition('.')
            layer = network.get_submodule(module)
            layer.lr_shares = {**getattr(layer, 'lr_shares', {}), own: 1 / sqrt(2)}
