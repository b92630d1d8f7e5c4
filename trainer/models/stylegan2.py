"""StyleGAN2. Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN".

Legend: N batch, C channels (I in, O out), H W pixels, z [N, z_dim] latents, c [N, c_dim] one-hot labels,
w [N, w_dim] one style, ws [N, num_ws, w_dim] one style for each layer. Block `b{4 << i}` is the i-th, coarsest first.
"""

from math import sqrt

import torch
from torch import Tensor, nn

from imago.kernels import conv2d, conv_transpose2d, epilogue, modulate, setup_filter, upsample2d
from imago.trainer.config.resolution import base_and_doublings
from imago.trainer.models.layers import (
    Conv2d,
    FullyConnected,
    HalfSizeShortcut,
    append_minibatch_stddev,
    as_maps,
    block_channels,
    block_dtype,
    check_outputs,
    default_clamp,
    normalize_second_moment,
)

NOISE = ('random', 'const', 'none')


def modulated_conv2d(x: Tensor, weight: Tensor, style: Tensor, b: Tensor | None = None, noise: Tensor | None = None,
                     demodulate: bool = True, up_filter: Tensor | None = None, slope: float = 1.0,
                     clamp: float | None = None) -> Tensor:
    """Apply equations 1-3, noise, bias and leaky ReLU: x [NIHW], weight [O, I, k, k], style [N, I] -> [NOHW].

    b [O] is the bias and noise [N or 1, 1, H, W] is of the output's size, which `up_filter` doubles. slope: that of the
    activation below 0; 1 means no activation.
    """
    if x.dtype == torch.float16 and demodulate:
        # Demodulation cancels these scales; without them float16 overflows.
        weight = weight / weight.abs().amax(dim=(1, 2, 3), keepdim=True) / sqrt(weight[0].numel())
        style = style / style.abs().amax(dim=1, keepdim=True)
    scale = (style.square() @ weight.square().sum(dim=(2, 3)).t() + 1e-8).rsqrt() if demodulate else None  # [N, O]
    if len(x) == 1 and weight.numel() < x.numel():
        # For one sample, it is less work to scale the weights than to scale the maps.
        weight = weight * style[0, :, None, None]
        weight, scale = weight if scale is None else weight * scale[0, :, None, None, None], None
    else:
        # One convolution serves all samples: styles scale its input, and demodulation scales its output.
        x = modulate(x, style)
    weight = weight.to(x.dtype)
    fir = {}
    if up_filter is None:
        x = conv2d(x, weight, padding=weight.shape[2] // 2)
    else:
        x = conv_transpose2d(x, weight.transpose(0, 1), stride=2)
        fir = {'taps': up_filter, 'padding': (1, 1, 1, 1), 'fir_gain': 4}
    return epilogue(x, scale, noise, b, alpha=slope, gain=1 if slope == 1 else sqrt(2), clamp=clamp, **fir)


class Mapping(nn.Module):
    """Maps z and c to ws. The trainer moves `w_avg`, the mean w. With z_dim = 0, it maps labels alone."""

    def __init__(self, z_dim: int, c_dim: int, w_dim: int, num_ws: int, layers: int) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.num_ws, self.layers = z_dim, c_dim, num_ws, layers
        if c_dim:
            self.embed = FullyConnected(c_dim, w_dim)
        features = z_dim + w_dim * (c_dim > 0)
        for index in range(layers):
            layer = FullyConnected(w_dim if index else features, w_dim, 'lrelu', lr_multiplier=0.01)
            self.add_module(f'fc{index}', layer)
        if z_dim:
            self.register_buffer('w_avg', torch.zeros(w_dim))

    def forward(self, z: Tensor | None, c: Tensor, truncation_psi: float = 1.0,
                truncation_cutoff: int | None = None) -> Tensor:
        """z [N, z_dim], c [N, c_dim] -> ws [N, num_ws, w_dim].

        Truncation draws the styles of the first `truncation_cutoff` layers (None: all) towards w_avg.
        """
        inputs = [normalize_second_moment(z)] if self.z_dim else []
        inputs += [normalize_second_moment(self.embed(c))] if self.c_dim else []
        x = torch.cat(inputs, dim=1)
        for index in range(self.layers):
            x = self.get_submodule(f'fc{index}')(x)
        ws = x[:, None].repeat(1, self.num_ws, 1)
        if truncation_psi != 1:
            ws[:, :truncation_cutoff] = self.w_avg.lerp(ws[:, :truncation_cutoff], truncation_psi)
        return ws


class SynthesisLayer(nn.Module):
    """Applies a modulated 3x3 convolution, noise, bias and activation: [NIHW] -> [NOHW]."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, size: tuple[int, int], up: bool = False,
                 clamp: float | None = None) -> None:
        super().__init__()
        self.size, self.clamp = size, clamp
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros(1))
        self.register_buffer('noise_const', torch.randn(size))
        self.register_buffer('up_filter', setup_filter([1, 3, 3, 1]) if up else None, persistent=False)

    def forward(self, x: Tensor, w: Tensor, noise: str) -> Tensor:
        """x [NIHW], w [N, w_dim] -> [N, O, *size]"""
        plane = None
        if noise != 'none':
            plane = self.noise_const[None, None] if noise == 'const' else torch.randn(len(x), 1, *self.size, device=x.device)
            plane = plane * self.noise_strength
        return modulated_conv2d(x, self.weight, self.affine(w), self.bias, plane, up_filter=self.up_filter, slope=0.2,
                                clamp=self.clamp)


class ToRGB(nn.Module):
    """Applies a modulated 1x1 convolution without demodulation: [NCHW] -> picture [N, img_channels, H, W]."""

    def __init__(self, in_channels: int, img_channels: int, w_dim: int, clamp: float | None = None) -> None:
        super().__init__()
        self.clamp, self.weight_gain = clamp, 1 / sqrt(in_channels)
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(img_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(img_channels))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x [NCHW], w [N, w_dim] -> [N, img_channels, H, W]"""
        return modulated_conv2d(x, self.weight, self.affine(w) * self.weight_gain, self.bias, demodulate=False,
                                clamp=self.clamp)


class SynthesisBlock(nn.Module):
    """Doubles the size and adds its picture to the one so far. The coarsest block (in_channels 0) starts from a constant."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, size: tuple[int, int], img_channels: int,
                 dtype: torch.dtype, clamp: float | None) -> None:
        super().__init__()
        self.dtype = dtype
        if in_channels:
            self.conv0 = SynthesisLayer(in_channels, out_channels, w_dim, size, up=True, clamp=clamp)
            self.register_buffer('up_filter', setup_filter([1, 3, 3, 1]), persistent=False)
        else:
            self.const = nn.Parameter(torch.randn(out_channels, *size))
        self.conv1 = SynthesisLayer(out_channels, out_channels, w_dim, size, clamp=clamp)
        self.torgb = ToRGB(out_channels, img_channels, w_dim, clamp)

    def forward(self, x: Tensor | None, img: Tensor | None, ws: Tensor, noise: str) -> tuple[Tensor, Tensor]:
        """x [N, I, H/2, W/2] and img [N, img_channels, H/2, W/2] are both None for the coarsest block.

        ws [N, layers, w_dim] holds the styles from this block's first layer on. Returns features [NOHW] and the picture
        [N, img_channels, H, W] (float32).
        """
        if x is None:
            x = as_maps(self.const.expand(len(ws), -1, -1, -1), self.dtype)
        else:
            x = self.conv0(as_maps(x, self.dtype), ws[:, 0], noise)
            ws = ws[:, 1:]
        x = self.conv1(x, ws[:, 0], noise)
        rgb = self.torgb(x, ws[:, 1]).float()
        return x, rgb if img is None else upsample2d(img, self.up_filter) + rgb


class Synthesis(nn.Module):
    """Maps ws to pictures, the sum of all blocks' pictures ("skip" architecture)."""

    def __init__(self, w_dim: int, resolution: tuple[int, int], img_channels: int, channel_base: int, channel_max: int,
                 low_precision: str, low_precision_blocks: int, conv_clamp: float | None) -> None:
        super().__init__()
        (height, width), doublings = base_and_doublings(resolution)
        clamp = default_clamp(low_precision, conv_clamp)
        channels = [0, *block_channels(channel_base, channel_max, doublings)]
        self.names, self.num_ws = [f'b{4 << i}' for i in range(doublings + 1)], 2 * doublings + 2
        for i, name in enumerate(self.names):
            dtype = block_dtype(low_precision, low_precision_blocks, i, doublings)
            self.add_module(name, SynthesisBlock(channels[i], channels[i + 1], w_dim, (height << i, width << i),
                                                 img_channels, dtype, clamp))

    def forward(self, ws: Tensor, noise: str = 'random') -> Tensor:
        """ws [N, num_ws, w_dim] -> pictures [NCHW], float32.

        noise: 'random', 'const' (the same in every call) or 'none'. Raises ValueError for others.
        """
        if noise not in NOISE:
            raise ValueError(f'noise {noise!r} is unknown: take one of {", ".join(NOISE)}')
        x = img = None
        for i, name in enumerate(self.names):
            x, img = self.get_submodule(name)(x, img, ws[:, max(2 * i - 1, 0):], noise)
        return img


class Generator(nn.Module):
    """resolution: (H, W). The `low_precision_blocks` finest blocks compute in `low_precision`; the coarsest never does."""

    def __init__(self, z_dim: int, c_dim: int, w_dim: int, resolution: tuple[int, int], img_channels: int,
                 mapping_layers: int = 8, channel_base: int = 32768, channel_max: int = 512,
                 low_precision: str = 'none', low_precision_blocks: int = 0, conv_clamp: float | None = None) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim, self.resolution = z_dim, c_dim, w_dim, tuple(resolution)
        self.synthesis = Synthesis(w_dim, resolution, img_channels, channel_base, channel_max, low_precision,
                                   low_precision_blocks, conv_clamp)
        self.num_ws = self.synthesis.num_ws
        self.mapping = Mapping(z_dim, c_dim, w_dim, self.num_ws, mapping_layers)

    def forward(self, z: Tensor, c: Tensor, truncation_psi: float = 1.0, truncation_cutoff: int | None = None,
                noise: str = 'const') -> Tensor:
        """z [N, z_dim], c [N, c_dim] -> pictures [NCHW], float32, about [-1, 1]. `noise` is that of `Synthesis`."""
        return self.synthesis(self.mapping(z, c, truncation_psi, truncation_cutoff), noise)


class DiscriminatorBlock(nn.Module):
    """Is residual and halves the size: [NIHW] -> [N, O, H/2, W/2]. Both branches weigh sqrt(1/2), to keep the variance."""

    def __init__(self, in_channels: int, out_channels: int, img_channels: int, dtype: torch.dtype,
                 clamp: float | None) -> None:
        """img_channels: channels of the picture that this block reads; 0 if it reads features."""
        super().__init__()
        self.dtype = dtype
        self.fromrgb = Conv2d(img_channels, in_channels, 1, clamp=clamp) if img_channels else nn.Identity()
        self.conv0 = Conv2d(in_channels, in_channels, 3, clamp=clamp)
        self.conv1 = Conv2d(in_channels, out_channels, 3, down=True, gain=sqrt(0.5), clamp=clamp)
        self.skip = HalfSizeShortcut(in_channels, out_channels, gain=sqrt(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """x [NIHW], or a picture [N, img_channels, H, W] -> [N, O, H/2, W/2]"""
        x = self.fromrgb(as_maps(x, self.dtype))
        return self.skip(x) + self.conv1(self.conv0(x))


class DiscriminatorEpilogue(nn.Module):
    """Maps features at the coarsest size [NCHW] to [N, out_features], in float32."""

    def __init__(self, channels: int, size: tuple[int, int], img_channels: int, out_features: int, mbstd_group: int,
                 clamp: float | None) -> None:
        super().__init__()
        self.mbstd_group = mbstd_group
        self.fromrgb = Conv2d(img_channels, channels, 1, clamp=clamp) if img_channels else nn.Identity()
        self.conv = Conv2d(channels + 1, channels, 3, clamp=clamp)
        self.fc = FullyConnected(channels * size[0] * size[1], channels, 'lrelu')
        self.out = FullyConnected(channels, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, *size], or a picture [N, img_channels, *size] -> [N, out_features]"""
        x = append_minibatch_stddev(self.fromrgb(as_maps(x, torch.float32)), self.mbstd_group)
        return self.out(self.fc(self.conv(x).flatten(1)))


class Discriminator(nn.Module):
    """Maps pictures and c to logits, conditional by projection (Miyato & Koyama 2018)."""

    def __init__(self, c_dim: int, resolution: tuple[int, int], img_channels: int, channel_base: int = 32768,
                 channel_max: int = 512, mbstd_group: int = 4, label_layers: int = 8, low_precision: str = 'none',
                 low_precision_blocks: int = 0, conv_clamp: float | None = None, num_outputs: int = 1) -> None:
        super().__init__()
        check_outputs(num_outputs, c_dim)
        base, doublings = base_and_doublings(resolution)
        clamp = default_clamp(low_precision, conv_clamp)
        self.c_dim, self.resolution = c_dim, tuple(resolution)
        self.names = [f'b{4 << i}' for i in range(doublings, -1, -1)]
        channels = block_channels(channel_base, channel_max, doublings)
        for i in range(doublings, 0, -1):
            dtype = block_dtype(low_precision, low_precision_blocks, i, doublings)
            self.add_module(f'b{4 << i}', DiscriminatorBlock(channels[i], channels[i - 1],
                                                             img_channels * (i == doublings), dtype, clamp))
        self.b4 = DiscriminatorEpilogue(channels[0], base, img_channels * (doublings == 0),
                                        channels[0] if c_dim else num_outputs, mbstd_group, clamp)
        if c_dim:
            self.mapping = Mapping(0, c_dim, channels[0], num_ws=1, layers=label_layers)

    def forward(self, img: Tensor, c: Tensor) -> Tensor:
        """img [NCHW] in [-1, 1] -> logits [N, num_outputs], float32."""
        x = img
        for name in self.names:
            x = self.get_submodule(name)(x)
        if self.c_dim:
            label = self.mapping(None, c)[:, 0]  # [N, C]
            x = (x * label).sum(dim=1, keepdim=True) / sqrt(label.shape[1])
        return x


def mix_styles(ws: Tensor, ws2: Tensor, cutoff: Tensor) -> Tensor:
    """ws and ws2 [N, num_ws, w_dim] -> ws with ws2's styles from layer `cutoff` [N] (int) on. Karras et al. 2019, section 3.1."""
    layer = torch.arange(ws.shape[1], device=ws.device)
    return torch.where((layer < cutoff[:, None])[:, :, None], ws, ws2)


def from_published(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take published weights for `load_state_dict`, without the blur filters, which are constants here.

    Strengths of noise become [1].
    """
    return {name: tensor.reshape(1) if name.endswith('noise_strength') else tensor
            for name, tensor in state_dict.items() if not name.endswith('resample_filter')}
