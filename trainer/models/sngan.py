"""SNGAN's residual networks. Miyato et al. 2018, "Spectral Normalization for GANs", appendix B, and
Miyato & Koyama 2018, "cGANs with Projection Discriminator", appendix A.

Legend: N batch, C channels, H W pixels, z [N, z_dim] latents, c [N, c_dim] one-hot labels.
"""

from math import sqrt

from torch import Tensor, nn
from torch.nn import functional as F

from imago.trainer.config.resolution import base_and_doublings
from imago.trainer.models.batch_norm import BatchNorm, ConditionalBatchNorm
from imago.trainer.models.layers import PlainConv2d, check_outputs
from imago.trainer.models.spectral import spectral_norm

WIDTHS = ('doubling', 'constant')
CHANNEL_STEPS = 4   # how often the channels double from the finest maps on, before they stay


class GeneratorBlock(nn.Module):
    """Is residual and doubles the size: [NIHW], and c if there are classes -> [N, O, H * 2, W * 2]."""

    def __init__(self, in_channels: int, out_channels: int, c_dim: int) -> None:
        super().__init__()
        self.norm0, self.norm1 = (ConditionalBatchNorm(channels, c_dim) if c_dim else BatchNorm(channels)
                                  for channels in (in_channels, out_channels))
        self.conv0 = convolution(in_channels, out_channels, 3, gain=sqrt(2))
        self.conv1 = convolution(out_channels, out_channels, 3, gain=sqrt(2))
        self.skip = convolution(in_channels, out_channels, 1)

    def forward(self, x: Tensor, *condition: Tensor) -> Tensor:
        """x [NIHW], and c [N, c_dim] if there are classes -> [N, O, 2H, 2W]"""
        y = self.conv0(F.interpolate(self.norm0(x, *condition).relu(), scale_factor=2))
        # A 1x1 convolution commutes with resampling, so it runs where there are fewer pixels.
        return self.conv1(self.norm1(y, *condition).relu()) + F.interpolate(self.skip(x), scale_factor=2)


class Generator(nn.Module):
    """Has residual blocks with batch norm; if there are classes, each class has its own gains and biases. resolution: (H, W).

    widths: 'doubling' gives the finest block `channels` and each coarser one twice as many, up to 16 times (the tables for
    48 and 128 px); 'constant' gives all 4 times `channels` (the table for CIFAR-10). Raises ValueError for others.
    """

    def __init__(self, z_dim: int, c_dim: int, resolution: tuple[int, int], img_channels: int, channels: int = 64,
                 widths: str = 'doubling') -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.resolution, self.num_ws = z_dim, c_dim, tuple(resolution), 0
        base, doublings = base_and_doublings(resolution)
        sizes = generator_channels(channels, widths, doublings)
        self.fc = nn.Linear(z_dim, sizes[0] * base[0] * base[1])
        self.unflatten = nn.Unflatten(1, (sizes[0], *base))
        self.blocks = nn.ModuleList(GeneratorBlock(sizes[i], sizes[i + 1], c_dim) for i in range(doublings))
        self.norm = BatchNorm(sizes[-1])
        self.torgb = convolution(sizes[-1], img_channels, 3)
        self.tail = (*(f'blocks.{i}' for i in range(doublings)[-1:]), 'norm', 'torgb')
        nn.init.xavier_uniform_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        """z [N, z_dim], c [N, c_dim] -> pictures [NCHW], float32, in [-1, 1]."""
        x, condition = self.unflatten(self.fc(z)), (c,) if self.c_dim else ()
        for block in self.blocks:
            x = block(x, *condition)
        return self.torgb(self.norm(x).relu()).tanh()


class DiscriminatorBlock(nn.Module):
    """Is residual and, with `down`, halves the size: [NIHW] -> [NOHW]. The first reads a picture, without a ReLU before it."""

    def __init__(self, in_channels: int, out_channels: int, down: bool, first: bool) -> None:
        super().__init__()
        self.down, self.first = down, first
        hidden = out_channels if first else in_channels
        self.conv0 = spectral_norm(convolution(in_channels, hidden, 3, gain=sqrt(2)))
        self.conv1 = spectral_norm(convolution(hidden, out_channels, 3, gain=sqrt(2)))
        learned = down or in_channels != out_channels
        self.skip = spectral_norm(convolution(in_channels, out_channels, 1)) if learned else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x [NIHW] -> [NOHW], or [N, O, H/2, W/2] with `down`"""
        y = self.conv1(self.conv0(x if self.first else x.relu()).relu())
        if self.down:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        return self.skip(x) + y


class Discriminator(nn.Module):
    """Has residual blocks and is conditional by projection. Spectral norm normalises all weights, the embedding's too.

    widths: 'doubling' reverses the generator's and adds a last block at the coarsest size (the table for 48 px halves once
    more); 'constant' gives all twice `channels`, with two blocks at twice the coarsest size. Raises ValueError for others.
    """

    def __init__(self, c_dim: int, resolution: tuple[int, int], img_channels: int, channels: int = 64,
                 widths: str = 'doubling', num_outputs: int = 1) -> None:
        super().__init__()
        check_outputs(num_outputs, c_dim)
        self.c_dim, self.resolution = c_dim, tuple(resolution)
        sizes, halvings = discriminator_channels(channels, widths, base_and_doublings(resolution)[1])
        sizes = [img_channels, *sizes]
        self.blocks = nn.Sequential(*(DiscriminatorBlock(sizes[i], sizes[i + 1], down=i < halvings, first=i == 0)
                                      for i in range(len(sizes) - 1)))
        self.fc = linear(sizes[-1], num_outputs)
        self.embed = linear(c_dim, sizes[-1], bias=False) if c_dim else None

    def forward(self, img: Tensor, c: Tensor) -> Tensor:
        """img [NCHW] in [-1, 1] -> logits [N, num_outputs], float32."""
        x = self.blocks(img).relu().sum(dim=(2, 3))     # [N, C]
        logits = self.fc(x)
        return logits + (x * self.embed(c)).sum(dim=1, keepdim=True) if self.c_dim else logits


def generator_channels(channels: int, widths: str, doublings: int) -> list[int]:
    """Count the channels of the coarsest maps and of each block after them."""
    check_widths(widths)
    if widths == 'constant':
        return [4 * channels] * (doublings + 1)
    return [channels << min(i, CHANNEL_STEPS) for i in range(doublings, -1, -1)]


def discriminator_channels(channels: int, widths: str, doublings: int) -> tuple[list[int], int]:
    """Return the channels of each block, and how many blocks halve the size."""
    check_widths(widths)
    if widths == 'constant':
        halvings = max(doublings - 1, 0)
        return [2 * channels] * (halvings + 2), halvings
    return [channels << min(i, CHANNEL_STEPS) for i in range(doublings + 1)], doublings


def check_widths(widths: str) -> None:
    if widths not in WIDTHS:
        raise ValueError(f'widths {widths!r} is unknown: take one of {", ".join(WIDTHS)}')


def convolution(in_channels: int, out_channels: int, kernel: int, gain: float = 1.0) -> PlainConv2d:
    conv = PlainConv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    nn.init.xavier_uniform_(conv.weight, gain)
    nn.init.zeros_(conv.bias)
    return conv


def linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(in_features, out_features, bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return spectral_norm(layer)
