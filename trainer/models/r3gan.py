"""R3GAN, Config E. Huang et al. 2024, "The GAN is dead; long live the GAN! A Modern GAN Baseline", section 4.

The networks are residual and have no normalisation: their blocks are inverted bottlenecks with grouped convolutions, and
resampling is bilinear.

Legend: N batch, C channels, H W pixels, z [N, z_dim] latents, c [N, c_dim] one-hot labels. Stage `b{4 << i}` is the i-th,
coarsest first.
"""

import torch
from torch import Tensor, nn

from imago.kernels import bias_act, downsample2d, setup_filter, upsample2d
from imago.trainer.config.resolution import base_and_doublings
from imago.trainer.models.layers import PlainConv2d, as_maps, block_channels, block_dtype, check_outputs

SLOPE = 0.2  # slope of leaky ReLU below 0


class Convolution(PlainConv2d):
    """Maps [NCHW] to [NCHW] of the same size, without bias, in the type of its input. Keeps the variance of N(0, 1) inputs."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2, groups=groups, bias=False)
        nn.init.kaiming_normal_(self.weight, nonlinearity='linear')


class ResidualBlock(nn.Module):
    """Computes x + 1x1(act(grouped 3x3(act(1x1(x))))), [NCHW] -> [NCHW]. It has `expansion` times as many channels inside, and
    starts as the identity."""

    def __init__(self, channels: int, expansion: int, group_size: int, network_depth: int) -> None:
        """network_depth: residual blocks in the whole network, which is L of Fix-up initialisation (Zhang et al. 2019)."""
        super().__init__()
        hidden = channels * expansion
        if hidden % group_size:
            raise ValueError(f'{channels} channels x expansion {expansion} are no multiple of group_size {group_size}: '
                             'choose channel_base, channel_max, expansion or group_size so that they are')
        self.conv0 = Convolution(channels, hidden)
        self.conv1 = Convolution(hidden, hidden, 3, groups=hidden // group_size)
        self.conv2 = Convolution(hidden, channels)
        self.bias0, self.bias1 = nn.Parameter(torch.zeros(hidden)), nn.Parameter(torch.zeros(hidden))
        for conv in self.conv0, self.conv1:
            nn.init.kaiming_normal_(conv.weight, a=SLOPE)
            conv.weight.data *= network_depth ** -0.25      # L^(-1 / (2m - 2)) with m = 3 layers
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x [NCHW] -> [NCHW]"""
        y = bias_act(self.conv0(x), self.bias0, act='lrelu', alpha=SLOPE, gain=1)
        y = bias_act(self.conv1(y), self.bias1, act='lrelu', alpha=SLOPE, gain=1)
        return x + self.conv2(y)


class Resample(nn.Module):
    """Resamples bilinearly, and changes the number of channels if it must: [NCHW] -> [N, out, H * 2, W * 2] with `up`, else
    [N, out, H / 2, W / 2]."""

    def __init__(self, in_channels: int, out_channels: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = Convolution(in_channels, out_channels) if in_channels != out_channels else nn.Identity()
        self.register_buffer('taps', setup_filter([1, 3, 3, 1]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, in, H, W] -> [N, out, 2H, 2W] with `up`, else [N, out, H/2, W/2]"""
        # A 1x1 convolution commutes with the filter, so it runs where there are fewer pixels.
        return upsample2d(self.conv(x), self.taps) if self.up else self.conv(downsample2d(x, self.taps))


class TypedLayers(nn.Sequential):
    """These layers compute in one type."""

    def __init__(self, dtype: torch.dtype, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """x [NCHW] -> [NCHW], with the channels and the size that its layers make."""
        return super().forward(as_maps(x, self.dtype))


class Generator(nn.Module):
    """Weights a learned basis of the coarsest maps by z; residual stages then double the size. resolution: (H, W).

    channel_base and channel_max give the stages' widths (`block_channels`), group_size gives the channels of a group.
    Classes are embedded in `label_dim` and join z. The `low_precision_blocks` finest stages compute in `low_precision`.
    Raises ValueError if a stage's inner channels are no multiple of `group_size`.
    """

    def __init__(self, z_dim: int, c_dim: int, resolution: tuple[int, int], img_channels: int, channel_base: int = 24576,
                 channel_max: int = 768, blocks: int = 2, expansion: int = 2, group_size: int = 16, label_dim: int = 64,
                 low_precision: str = 'none', low_precision_blocks: int = 0) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.resolution, self.num_ws = z_dim, c_dim, tuple(resolution), 0
        base, doublings = base_and_doublings(resolution)
        channels = block_channels(channel_base, channel_max, doublings)
        self.embed = nn.Linear(c_dim, label_dim, bias=False) if c_dim else None
        self.fc = nn.Linear(z_dim + label_dim * (c_dim > 0), channels[0], bias=False)
        self.basis = nn.Parameter(torch.randn(channels[0], *base))
        nn.init.kaiming_normal_(self.fc.weight, nonlinearity='linear')
        if c_dim:
            nn.init.normal_(self.embed.weight, std=c_dim ** -0.5)
        self.names = [f'b{4 << i}' for i in range(doublings + 1)]
        for i, name in enumerate(self.names):
            layers = [Resample(channels[i - 1], channels[i], up=True)] if i else []
            layers += [ResidualBlock(channels[i], expansion, group_size, blocks * (doublings + 1)) for _ in range(blocks)]
            self.add_module(name, TypedLayers(block_dtype(low_precision, low_precision_blocks, i, doublings), *layers))
        self.torgb = Convolution(channels[-1], img_channels)
        self.tail = (self.names[-1], 'torgb')

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        """z [N, z_dim], c [N, c_dim] -> pictures [NCHW], float32, about [-1, 1]."""
        x = torch.cat([z, self.embed(c)], dim=1) if self.c_dim else z
        x = self.fc(x)[:, :, None, None] * self.basis
        for name in self.names:
            x = self.get_submodule(name)(x)
        return self.torgb(x).float()


class Discriminator(nn.Module):
    """Mirrors the generator and takes its options. It is conditional by projection alone: the logit is <features, embedded
    class>.

    d_label_dim: dimensions of the features and of the embedded class; None means label_dim.
    """

    def __init__(self, c_dim: int, resolution: tuple[int, int], img_channels: int, channel_base: int = 24576,
                 channel_max: int = 768, blocks: int = 2, expansion: int = 2, group_size: int = 16, label_dim: int = 64,
                 d_label_dim: int | None = None, low_precision: str = 'none', low_precision_blocks: int = 0,
                 num_outputs: int = 1) -> None:
        super().__init__()
        check_outputs(num_outputs, c_dim)
        label_dim = label_dim if d_label_dim is None else d_label_dim
        self.c_dim, self.resolution = c_dim, tuple(resolution)
        base, doublings = base_and_doublings(resolution)
        channels = block_channels(channel_base, channel_max, doublings)
        self.names = [f'b{4 << i}' for i in range(doublings, -1, -1)]
        for i, name in zip(range(doublings, -1, -1), self.names):
            layers = [Convolution(img_channels, channels[i])] if i == doublings else []
            layers += [ResidualBlock(channels[i], expansion, group_size, blocks * (doublings + 1)) for _ in range(blocks)]
            layers += [Resample(channels[i], channels[i - 1], up=False)] if i else []
            self.add_module(name, TypedLayers(block_dtype(low_precision, low_precision_blocks, i, doublings), *layers))
        self.basis = nn.Parameter(torch.randn(channels[0], *base) / (base[0] * base[1]) ** 0.5)
        self.fc = nn.Linear(channels[0], label_dim if c_dim else num_outputs, bias=False)
        nn.init.kaiming_normal_(self.fc.weight, nonlinearity='linear')
        self.embed = nn.Linear(c_dim, label_dim, bias=False) if c_dim else None
        if c_dim:
            nn.init.normal_(self.embed.weight, std=(c_dim * label_dim) ** -0.5)

    def forward(self, img: Tensor, c: Tensor) -> Tensor:
        """img [NCHW] in [-1, 1] -> logits [N, num_outputs], float32."""
        x = img
        for name in self.names:
            x = self.get_submodule(name)(x)
        x = self.fc((x * self.basis).sum(dim=(2, 3)))
        return (x * self.embed(c)).sum(dim=1, keepdim=True) if self.c_dim else x
