"""BEGAN. Berthelot et al. 2017, "BEGAN: Boundary Equilibrium Generative Adversarial Networks", section 3.5.

The optional vanishing residuals and skip connections of section 3.5.1 are left out.

Legend: N batch, C channels, H W pixels, z [N, z_dim] latents, c [N, c_dim] one-hot labels, h [N, code_dim] codes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imago.trainer.config.resolution import base_and_doublings
from imago.trainer.models.layers import PlainConv2d, checked_latents


def base_and_stages(resolution: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """(H, W) -> the size of the coarsest maps and the number of sizes. The shorter side of these maps has 8 to 15 px, or as
    few as the picture's."""
    doublings = max(base_and_doublings(resolution)[1] - 1, 0)
    return (resolution[0] >> doublings, resolution[1] >> doublings), doublings + 1


class Decoder(nn.Module):
    """Maps codes and c to pictures [NCHW] float32, about [-1, 1]. It is the generator, and half of the discriminator.

    The paper has no classes. Here they are embedded in as many dimensions as the code has, and join it.
    """

    def __init__(self, code_dim: int, c_dim: int, resolution: tuple[int, int], img_channels: int, channels: int) -> None:
        super().__init__()
        base, stages = base_and_stages(resolution)
        self.embed = nn.Linear(c_dim, code_dim, bias=False) if c_dim else None
        if c_dim:
            nn.init.normal_(self.embed.weight)      # the embedding then looks like a latent
        self.fc = nn.Linear(code_dim * (1 + (c_dim > 0)), channels * base[0] * base[1])
        self.unflatten = nn.Unflatten(1, (channels, *base))
        self.stages = nn.ModuleList(nn.Sequential(*convolution(channels, channels), *convolution(channels, channels))
                                    for _ in range(stages))
        self.torgb = PlainConv2d(channels, img_channels, 3, padding=1)

    def forward(self, code: Tensor, c: Tensor) -> Tensor:
        """code [N, code_dim], c [N, c_dim] -> pictures [N, img_channels, H, W]"""
        code = code if self.embed is None else torch.cat([code, self.embed(c)], dim=1)
        x = self.unflatten(self.fc(code))
        for index, stage in enumerate(self.stages):
            x = stage(F.interpolate(x, scale_factor=2) if index else x)
        return self.torgb(x)


def make_encoder(code_dim: int, resolution: tuple[int, int], img_channels: int, channels: int) -> nn.Sequential:
    """Build a network from pictures [NCHW] to h. Each convolution of stride 2 halves the size, and channels grow linearly."""
    base, stages = base_and_stages(resolution)
    layers = convolution(img_channels, channels)
    for stage in range(1, stages + 1):
        last = stage == stages
        layers += convolution(channels * stage, channels * stage)
        layers += convolution(channels * stage, channels * (stage + (not last)), stride=1 if last else 2)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * stages * base[0] * base[1], code_dim))


class Generator(Decoder):
    """This is the discriminator's decoder, with its own weights. resolution: (H, W). latents: 'uniform' as published."""

    def __init__(self, z_dim: int, c_dim: int, resolution: tuple[int, int], img_channels: int, channels: int = 128,
                 latents: str = 'normal') -> None:
        super().__init__(z_dim, c_dim, resolution, img_channels, channels)
        self.z_dim, self.c_dim, self.resolution, self.num_ws = z_dim, c_dim, tuple(resolution), 0
        self.latents = checked_latents(latents)
        self.tail = (f'stages.{len(self.stages) - 1}', 'torgb')


class Discriminator(nn.Module):
    """This is an autoencoder, whose energy is its reconstruction error. Raises ValueError for more than one output."""

    def __init__(self, c_dim: int, resolution: tuple[int, int], img_channels: int, channels: int = 128, code_dim: int = 64,
                 num_outputs: int = 1) -> None:
        super().__init__()
        if num_outputs > 1:
            raise ValueError(f'num_outputs {num_outputs}: an autoencoder has one energy and no classifier; give 1')
        self.c_dim, self.resolution = c_dim, tuple(resolution)
        self.encoder = make_encoder(code_dim, resolution, img_channels, channels)
        self.decoder = Decoder(code_dim, c_dim, resolution, img_channels, channels)

    def forward(self, img: Tensor, c: Tensor) -> Tensor:
        """img [NCHW] in [-1, 1] -> energies [N, 1] >= 0, float32: mean |img - decoder(encoder(img), c)|, equation 1."""
        return (img - self.decoder(self.encoder(img), c)).abs().flatten(1).mean(dim=1, keepdim=True)


def convolution(in_channels: int, out_channels: int, stride: int = 1) -> list[nn.Module]:
    return [PlainConv2d(in_channels, out_channels, 3, stride, padding=1), nn.ELU()]
