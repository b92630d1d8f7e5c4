"""StyleGAN. Karras et al. 2019, "A Style-Based Generator Architecture for Generative Adversarial Networks".

The legend is that of growing.py; w [N, w_dim] is one style, ws [N, num_ws, w_dim] holds one style for each layer.
"""

import re
from math import sqrt

import torch
from torch import Tensor, nn

from imago.kernels import adain, bias_act, conv2d, filter2d, setup_filter
from imago.trainer.models.growing import (
    GrowingDiscriminator,
    GrowingSynthesis,
    before_gain,
    conv_down2d,
    learn_after_gain,
    published_discriminator,
    up_conv2d,
)
from imago.trainer.models.layers import Conv2d, FullyConnected, as_maps
from imago.trainer.models.stylegan2 import NOISE, Mapping

BLUR = [1, 2, 1]
# These are names in G, see `before_gain`. The first layer has no weights, and no gain.
GAINED = re.compile(r'mapping\.fc\d+\.bias|synthesis\.layers\.[1-9]\d*\.(bias|noise_strength)')


class StyledLayer(nn.Module):
    """Applies a 3x3 convolution, noise, bias, activation and AdaIN: [NIHW] -> [NOHW]. With `up`, it doubles the size and blurs.

    The first layer, with in_channels 0, starts from a learned constant.
    """

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, size: tuple[int, int], up: bool = False) -> None:
        super().__init__()
        self.size, self.up = size, up
        self.affine = FullyConnected(w_dim, 2 * out_channels)
        if in_channels:
            self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
            self.weight_gain = 1 / sqrt(9 * in_channels)
        else:
            self.const = nn.Parameter(torch.ones(out_channels, *size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer('noise_const', torch.randn(size))
        self.register_buffer('blur', setup_filter(BLUR) if up else None, persistent=False)

    def forward(self, x: Tensor | None, w: Tensor, noise: str) -> Tensor:
        """x [NIHW] (None for the first layer), w [N, w_dim] -> [N, O, *size]"""
        x = self._maps(x, len(w))
        if noise != 'none':
            plane = self.noise_const[None, None] if noise == 'const' else torch.randn(len(x), 1, *self.size, device=x.device)
            x = torch.addcmul(x, plane.to(x.dtype), self.noise_strength.to(x.dtype)[:, None, None])
        scale, shift = self.affine(w).chunk(2, dim=1)  # [N, O] each
        return adain(x, scale + 1, shift, b=self.bias)

    def _maps(self, x: Tensor | None, count: int) -> Tensor:
        if x is None:
            return as_maps(self.const.expand(count, -1, -1, -1), torch.float32)
        weight = self.weight * self.weight_gain
        if self.up:
            return filter2d(up_conv2d(x, weight), self.blur)
        return conv2d(x, weight.to(x.dtype), padding=1)


class Synthesis(GrowingSynthesis):
    """Maps ws to pictures."""

    def __init__(self, w_dim: int, resolution: tuple[int, int], img_channels: int, channel_base: int, channel_max: int,
                 low_precision: str, low_precision_blocks: int) -> None:
        super().__init__(resolution, img_channels, channel_base, channel_max, low_precision, low_precision_blocks)
        self.num_ws = 2 * self.doublings + 2
        for i, channels in enumerate(self.channels):
            size = self.base[0] << i, self.base[1] << i
            below = self.channels[i - 1] if i else 0
            self.layers.append(StyledLayer(below, channels, w_dim, size, up=i > 0))
            self.layers.append(StyledLayer(channels, channels, w_dim, size))

    def forward(self, ws: Tensor, noise: str = 'random') -> Tensor:
        """ws [N, num_ws, w_dim] -> pictures [N, img_channels, H >> f, W >> f], float32.

        noise: 'random', 'const' (the same in every call) or 'none'. Raises ValueError for others.
        """
        if noise not in NOISE:
            raise ValueError(f'noise {noise!r} is unknown: take one of {", ".join(NOISE)}')
        return self.grow(None, lambda index, x: self.layers[index](x, ws[:, index], noise))


class Generator(nn.Module):
    """resolution: (H, W). The `low_precision_blocks` finest sizes compute in `low_precision`; the coarsest never does."""

    def __init__(self, z_dim: int, c_dim: int, w_dim: int, resolution: tuple[int, int], img_channels: int,
                 mapping_layers: int = 8, channel_base: int = 16384, channel_max: int = 512,
                 low_precision: str = 'none', low_precision_blocks: int = 0) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim, self.resolution = z_dim, c_dim, w_dim, tuple(resolution)
        self.synthesis = Synthesis(w_dim, resolution, img_channels, channel_base, channel_max, low_precision,
                                   low_precision_blocks)
        self.num_ws = self.synthesis.num_ws
        self.mapping = Mapping(z_dim, c_dim, w_dim, self.num_ws, mapping_layers)
        learn_after_gain(self, GAINED)

    def forward(self, z: Tensor, c: Tensor, truncation_psi: float = 1.0, truncation_cutoff: int | None = None,
                noise: str = 'const') -> Tensor:
        """z [N, z_dim], c [N, c_dim] -> pictures [N, img_channels, H >> f, W >> f], float32, about [-1, 1].

        `noise` is that of `Synthesis`.
        """
        return self.synthesis(self.mapping(z, c, truncation_psi, truncation_cutoff), noise)


class BlurredDownConv2d(Conv2d):
    """Blurs maps, convolves them, takes means of 2x2 pixels, adds the bias and activates: [NIHW] -> [N, O, H/2, W/2]."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, clamp: float | None = None) -> None:
        super().__init__(in_channels, out_channels, kernel, clamp=clamp)
        self.register_buffer('blur', setup_filter(BLUR), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [NIHW] -> [N, O, H/2, W/2]"""
        x = conv_down2d(filter2d(x, self.blur), self.weight * self.weight_gain)
        return bias_act(x, self.bias, act=self.act, gain=self.gain, clamp=self.clamp)


class Discriminator(GrowingDiscriminator):
    """This is PGGAN's discriminator with blurs."""

    half_size_layer = BlurredDownConv2d


PUBLISHED_NAMES = {  # published name: name here
    'truncation.': 'mapping.', 'mapping.dense': 'mapping.fc', 'synthesis.layer': 'synthesis.layers.',
    'synthesis.output': 'synthesis.torgb.', 'apply_noise.noise': 'noise_const', 'apply_noise.weight': 'noise_strength',
    'style.': 'affine.'}


def from_published(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give each published tensor of G or D its name here, for `load_state_dict`. Blur filters are dropped: they are constants.

    The learned constant becomes [C, H, W], and planes of noise become [H, W].
    """
    if 'input0.weight' in state_dict:
        return published_discriminator(state_dict)
    renamed = {}
    for name, tensor in state_dict.items():
        for theirs, ours in PUBLISHED_NAMES.items():
            name = name.replace(theirs, ours)
        if name.endswith(('const', 'noise_const')):
            tensor = tensor.reshape(tensor.shape[-3 if name.endswith('.const') else -2:])
        if not name.endswith('blur.kernel'):
            renamed[name] = tensor
    return before_gain(renamed, GAINED)
