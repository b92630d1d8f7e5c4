"""DCGAN. Radford et al. 2016, "Unsupervised Representation Learning with Deep Convolutional GANs", section 3.

Kernels are 4x4, and maps of half the picture's size have 64 channels, as in the authors' runs; their figure 1 draws twice as
many.

Legend: N batch, C channels, H W pixels, z [N, z_dim] latents, c [N, c_dim] one-hot labels.
"""

import torch
from torch import Tensor, nn

from imago.trainer.config.resolution import base_and_doublings
from imago.trainer.models.batch_norm import BatchNorm
from imago.trainer.models.layers import PlainConv2d, check_outputs, checked_latents

CHANNEL_STEPS = 4   # how often the channels double from the finest maps on, before they stay


class Generator(nn.Module):
    """Projects z to the coarsest maps and doubles them by transposed convolutions. resolution: (H, W).

    The paper has no classes. Here they are embedded in z_dim dimensions and join z. latents: a name in layers.LATENTS,
    'uniform' as published.
    """

    def __init__(self, z_dim: int, c_dim: int, resolution: tuple[int, int], img_channels: int, channels: int = 64,
                 latents: str = 'normal') -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.resolution, self.num_ws = z_dim, c_dim, tuple(resolution), 0
        self.latents = checked_latents(latents)
        (height, width), doublings = base_and_doublings(resolution)
        sizes = [*reversed(block_channels(channels, doublings)), img_channels]
        self.embed = nn.Linear(c_dim, z_dim, bias=False) if c_dim else None
        self.fc = nn.Linear(z_dim * (1 + (c_dim > 0)), sizes[0] * height * width, bias=not doublings)
        self.unflatten = nn.Unflatten(1, (sizes[0], height, width))
        self.blocks = nn.ModuleList(
            nn.Sequential(BatchNorm(sizes[i]), nn.ReLU(),
                          nn.ConvTranspose2d(sizes[i], sizes[i + 1], 4, stride=2, padding=1, bias=i == doublings - 1))
            for i in range(doublings))
        self.tail = (f'blocks.{doublings - 1}',) if doublings else ('fc',)
        self.apply(initialise)
        if c_dim:
            nn.init.normal_(self.embed.weight)      # the embedding then looks like z

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        """z [N, z_dim], c [N, c_dim] -> pictures [NCHW], float32, in [-1, 1]."""
        x = self.unflatten(self.fc(torch.cat([z, self.embed(c)], dim=1) if self.c_dim else z))
        for block in self.blocks:
            x = block(x)
        return x.tanh()


class Discriminator(nn.Module):
    """Has strided convolutions, all but the first with batch norm. Is conditional by projection, Miyato & Koyama 2018."""

    def __init__(self, c_dim: int, resolution: tuple[int, int], img_channels: int, channels: int = 64,
                 num_outputs: int = 1) -> None:
        super().__init__()
        check_outputs(num_outputs, c_dim)
        self.c_dim, self.resolution = c_dim, tuple(resolution)
        (height, width), doublings = base_and_doublings(resolution)
        sizes = [img_channels, *block_channels(channels, doublings)]
        layers = []
        for i in range(doublings):
            layers += [PlainConv2d(sizes[i], sizes[i + 1], 4, stride=2, padding=1, bias=not i)]
            layers += [BatchNorm(sizes[i + 1])] if i else []
            layers += [nn.LeakyReLU(0.2)]
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(sizes[-1] * height * width, num_outputs)
        self.embed = nn.Linear(c_dim, sizes[-1], bias=False) if c_dim else None
        self.apply(initialise)

    def forward(self, img: Tensor, c: Tensor) -> Tensor:
        """img [NCHW] in [-1, 1] -> logits [N, num_outputs], float32."""
        x = self.features(img)
        logits = self.fc(x.flatten(1))
        return logits + (x.sum(dim=(2, 3)) * self.embed(c)).sum(dim=1, keepdim=True) if self.c_dim else logits


def block_channels(channels: int, doublings: int) -> list[int]:
    """Count the channels of the maps that have 1/2, 1/4 ... of the picture's size."""
    return [channels << min(i, CHANNEL_STEPS) for i in range(doublings)]


def initialise(module: nn.Module) -> None:
    """Draw weights from N(0, 0.02) and set biases to 0; batch norm keeps its own values."""
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
