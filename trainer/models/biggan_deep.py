"""BigGAN-deep. Brock et al. 2019, "Large Scale GAN Training for High Fidelity Natural Image Synthesis", appendix B.

Blocks are bottlenecks, and their shortcuts keep the channels. The whole z is a condition of every block.

Legend: N batch, C channels (I in, O out), H W pixels, z [N, z_dim] latents, c [N, c_dim] one-hot labels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imago.trainer.models.biggan import (
    D_WIDTHS,
    EPS,
    G_WIDTHS,
    attends_at,
    conditional_norm,
    conv,
    double,
    embedding,
    from_published,
    halves,
    linear,
    output_layer,
    table_size,
)
from imago.trainer.models.layers import as_maps, block_dtype, check_outputs
from imago.trainer.models.spectral import spectral_norm

BOTTLENECK = 4   # a block has this many times fewer channels inside than on its wider side


class GeneratorBlock(nn.Module):
    """Is residual and, with `up`, doubles the size: [NIHW], condition [N, condition_dim] -> [NOHW]. Its shortcut keeps the
    first O <= I channels."""

    def __init__(self, in_channels: int, out_channels: int, condition_dim: int, up: bool, dtype: torch.dtype,
                 eps: float) -> None:
        super().__init__()
        self.out_channels, self.up, self.dtype = out_channels, up, dtype
        hidden = max(in_channels // BOTTLENECK, 1)
        self.bn1 = conditional_norm(in_channels, condition_dim, eps)
        self.bn2, self.bn3, self.bn4 = (conditional_norm(hidden, condition_dim, eps) for _ in range(3))
        self.conv1 = conv(in_channels, hidden, 1, eps)
        self.conv2, self.conv3 = conv(hidden, hidden, 3, eps), conv(hidden, hidden, 3, eps)
        self.conv4 = conv(hidden, out_channels, 1, eps)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [NIHW], condition [N, condition_dim] -> [NOHW], or [N, O, 2H, 2W] with `up`"""
        x = as_maps(x, self.dtype)
        y = self.conv1(self.bn1(x, condition).relu())
        y = self.bn2(y, condition).relu()
        x = x[:, :self.out_channels]
        if self.up:
            x, y = double(x), double(y)
        y = self.conv3(self.bn3(self.conv2(y), condition).relu())
        return x + self.conv4(self.bn4(y, condition).relu())


class Generator(nn.Module):
    """depth: blocks at each size. Other arguments and errors are those of BigGAN, but z stays whole."""

    def __init__(self, z_dim: int, c_dim: int, resolution: tuple[int, int], img_channels: int, channels: int = 128,
                 shared_dim: int = 128, depth: int = 2, attention: int = 64, low_precision: str = 'none',
                 low_precision_blocks: int = 0, eps: float = EPS) -> None:
        super().__init__()
        self.base, doublings = table_size(resolution)
        self.z_dim, self.c_dim, self.resolution, self.num_ws = z_dim, c_dim, tuple(resolution), 0
        widths = [channels * width for width in G_WIDTHS[doublings]]
        self.shared = embedding(c_dim, shared_dim) if c_dim else None
        condition_dim = z_dim + shared_dim * (c_dim > 0)
        self.linear = linear(condition_dim, widths[0] * self.base[0] * self.base[1], eps)
        self.blocks = nn.ModuleList()
        for i in range(doublings):
            # The last block of a size doubles it.
            dtypes = [block_dtype(low_precision, low_precision_blocks, i + last, doublings) for last in (False, True)]
            for _ in range(depth - 1):
                block = GeneratorBlock(widths[i], widths[i], condition_dim, False, dtypes[0], eps)
                self.blocks.append(nn.ModuleList([block]))
            block = GeneratorBlock(widths[i], widths[i + 1], condition_dim, True, dtypes[1], eps)
            self.blocks.append(nn.ModuleList([block, *attends_at(8 << i, attention, widths[i + 1], eps)]))
        self.output_layer = output_layer(widths[-1], img_channels, eps)
        self.tail = (f'blocks.{len(self.blocks) - 1}', 'output_layer')

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        """z [N, z_dim], c [N, c_dim] -> pictures [NCHW], float32, in [-1, 1]."""
        condition = torch.cat([c @ self.shared.weight, z], dim=1) if self.c_dim else z
        x = self.linear(condition).unflatten(1, (-1, *self.base))
        for block, *attention in self.blocks:
            x = block(x, condition)
            for attend in attention:
                x = attend(x)
        return self.output_layer(as_maps(x, torch.float32)).tanh()


class DiscriminatorBlock(nn.Module):
    """Is residual and, with `down`, halves the size: [NIHW] -> [NOHW]. The shortcut learns only the O - I >= 0 channels that
    are added."""

    def __init__(self, in_channels: int, out_channels: int, down: bool, dtype: torch.dtype, eps: float) -> None:
        super().__init__()
        self.down, self.dtype = down, dtype
        hidden = max(out_channels // BOTTLENECK, 1)
        self.conv1 = conv(in_channels, hidden, 1, eps)
        self.conv2, self.conv3 = conv(hidden, hidden, 3, eps), conv(hidden, hidden, 3, eps)
        self.conv4 = conv(hidden, out_channels, 1, eps)
        self.conv_sc = conv(in_channels, out_channels - in_channels, 1, eps) if out_channels > in_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """x [NIHW] -> [NOHW], or [N, O, H/2, W/2] with `down`"""
        x = as_maps(x, self.dtype)
        y = self.conv1(x.relu())
        y = self.conv3(self.conv2(y.relu()).relu()).relu()
        if self.down:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        if self.conv_sc is not None:
            x = torch.cat([x, self.conv_sc(x)], dim=1)
        return x + self.conv4(y)


class Discriminator(nn.Module):
    """Maps pictures and c to logits, conditional by projection (Miyato & Koyama 2018). It takes the generator's arguments."""

    def __init__(self, c_dim: int, resolution: tuple[int, int], img_channels: int, channels: int = 128, depth: int = 2,
                 attention: int = 64, low_precision: str = 'none', low_precision_blocks: int = 0, num_outputs: int = 1,
                 eps: float = EPS) -> None:
        super().__init__()
        check_outputs(num_outputs, c_dim)
        self.c_dim, self.resolution = c_dim, tuple(resolution)
        doublings = table_size(resolution)[1]
        widths = [channels * width for width in D_WIDTHS[doublings]]
        self.input_conv = conv(img_channels, widths[0], 3, eps)
        self.blocks = nn.Sequential()
        for i in range(doublings):
            # The first block of a size comes from twice that size.
            dtypes = [block_dtype(low_precision, low_precision_blocks, doublings - i - later, doublings) for later in (0, 1)]
            stage = [DiscriminatorBlock(widths[i], widths[i + 1], halves(i, doublings), dtypes[0], eps)]
            stage += [DiscriminatorBlock(widths[i + 1], widths[i + 1], False, dtypes[1], eps) for _ in range(depth - 1)]
            self.blocks.append(nn.Sequential(*stage, *attends_at(2 << (doublings - i), attention, widths[i + 1], eps)))
        self.linear = linear(widths[-1], num_outputs, eps)
        self.embed = spectral_norm(embedding(c_dim, widths[-1]), eps) if c_dim else None

    def forward(self, img: Tensor, c: Tensor) -> Tensor:
        """img [NCHW] in [-1, 1] -> logits [N, num_outputs], float32."""
        x = self.blocks(self.input_conv(img)).float().relu().sum(dim=(2, 3))  # [N, C]
        logits = self.linear(x)
        return logits + (x * (c @ self.embed.weight)).sum(dim=1, keepdim=True) if self.c_dim else logits


__all__ = ['Discriminator', 'Generator', 'from_published']
