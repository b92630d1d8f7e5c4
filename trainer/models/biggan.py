"""BigGAN. Brock et al. 2019, "Large Scale GAN Training for High Fidelity Natural Image Synthesis", appendix B.

Legend: N batch, C channels (I in, O out), H W pixels, z [N, z_dim] latents, c [N, c_dim] one-hot labels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imago.trainer.config.resolution import base_and_doublings
from imago.trainer.models.batch_norm import BatchNorm, ConditionalBatchNorm
from imago.trainer.models.layers import PlainConv2d, as_maps, block_dtype, check_outputs
from imago.trainer.models.spectral import spectral_norm

# The number of doublings from the base (4 px) gives the widths, as multiples of `channels`: in G those of the coarsest maps
# and of each block after them, in D those of each block. They are appendix B's tables, which BigGAN-deep shares. These lack
# 64 px, which is as in the recorded networks, and 32 px, which has one width throughout, as Miyato et al. 2018, table 4.
G_WIDTHS = {
    3: (4, 4, 4, 4),
    4: (16, 16, 8, 4, 2),
    5: (16, 16, 8, 4, 2, 1),
    6: (16, 16, 8, 8, 4, 2, 1),
    7: (16, 16, 8, 8, 4, 2, 1, 1),
}
D_WIDTHS = {
    3: (4, 4, 4, 4),
    4: (1, 2, 4, 8, 16),
    5: (1, 2, 4, 8, 16, 16),
    6: (1, 2, 4, 8, 8, 16, 16),
    7: (1, 1, 2, 4, 8, 8, 16, 16),
}
EPS = 1e-4   # batch norm and spectral norm use it; appendix C


class SelfAttention(nn.Module):
    """Lets each pixel of [NCHW] attend to the maxima over 2x2 pixels, and returns [NCHW]. Zhang et al. 2019, section 3."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        narrow, half = max(channels // 8, 1), max(channels // 2, 1)
        self.theta, self.phi, self.g = (conv(channels, out, 1, eps, bias=False) for out in (narrow, narrow, half))
        self.o = conv(half, channels, 1, eps, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """x [NCHW] -> [NCHW]"""
        queries = self.theta(x).flatten(2)                      # [N, C/8, HW]
        keys = F.max_pool2d(self.phi(x), 2).flatten(2)          # [N, C/8, HW/4]
        values = F.max_pool2d(self.g(x), 2).flatten(2)          # [N, C/2, HW/4]
        shares = (queries.transpose(1, 2) @ keys).softmax(dim=2)
        attended = (values @ shares.transpose(1, 2)).unflatten(2, x.shape[2:])
        return x + self.gamma * self.o(attended)


class GeneratorBlock(nn.Module):
    """Is residual and doubles the size: [NIHW], condition [N, condition_dim] -> [N, O, H * 2, W * 2]. Figure 15b."""

    def __init__(self, in_channels: int, out_channels: int, condition_dim: int, dtype: torch.dtype, eps: float) -> None:
        super().__init__()
        self.dtype = dtype
        self.bn1 = conditional_norm(in_channels, condition_dim, eps)
        self.bn2 = conditional_norm(out_channels, condition_dim, eps)
        self.conv1, self.conv2 = conv(in_channels, out_channels, 3, eps), conv(out_channels, out_channels, 3, eps)
        self.conv_sc = conv(in_channels, out_channels, 1, eps)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [NIHW], condition [N, condition_dim] -> [N, O, 2H, 2W]"""
        x = as_maps(x, self.dtype)
        y = self.conv1(double(self.bn1(x, condition).relu()))
        y = self.conv2(self.bn2(y, condition).relu())
        # A 1x1 convolution commutes with resampling, so it runs where there are fewer pixels.
        return y + double(self.conv_sc(x))


class Generator(nn.Module):
    """Cuts z into chunks: the first makes the coarsest maps; each other one joins the class as the condition of one block.

    resolution: (H, W), 2**k times the base for a k that the tables have. attention: side of the maps that attend, if the
    base counts as 4 px; no map attends if none has this side. Raises ValueError for a z_dim that cannot be cut evenly.
    """

    def __init__(self, z_dim: int, c_dim: int, resolution: tuple[int, int], img_channels: int, channels: int = 96,
                 shared_dim: int = 128, attention: int = 64, low_precision: str = 'none', low_precision_blocks: int = 0,
                 eps: float = EPS) -> None:
        super().__init__()
        self.base, doublings = table_size(resolution)
        if z_dim % (doublings + 1):
            raise ValueError(f'z_dim {z_dim} cannot be cut into {doublings + 1} chunks, as {resolution[0]}x{resolution[1]} '
                             f'needs; take {20 * (doublings + 1)}, or another multiple of {doublings + 1}')
        self.z_dim, self.c_dim, self.resolution, self.num_ws = z_dim, c_dim, tuple(resolution), 0
        self.chunks = doublings + 1
        widths = [channels * width for width in G_WIDTHS[doublings]]
        self.shared = embedding(c_dim, shared_dim) if c_dim else None
        condition_dim = z_dim // self.chunks + shared_dim * (c_dim > 0)
        self.linear = linear(z_dim // self.chunks, widths[0] * self.base[0] * self.base[1], eps)
        self.blocks = nn.ModuleList()
        for i in range(doublings):
            dtype = block_dtype(low_precision, low_precision_blocks, i + 1, doublings)
            block = GeneratorBlock(widths[i], widths[i + 1], condition_dim, dtype, eps)
            self.blocks.append(nn.ModuleList([block, *attends_at(8 << i, attention, widths[i + 1], eps)]))
        self.output_layer = output_layer(widths[-1], img_channels, eps)
        self.tail = (f'blocks.{doublings - 1}', 'output_layer')

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        """z [N, z_dim], c [N, c_dim] -> pictures [NCHW], float32, in [-1, 1]."""
        first, *chunks = z.chunk(self.chunks, dim=1)
        label = c @ self.shared.weight if self.c_dim else z[:, :0]
        x = self.linear(first).unflatten(1, (-1, *self.base))
        for (block, *attention), chunk in zip(self.blocks, chunks, strict=True):
            x = block(x, torch.cat([label, chunk], dim=1))
            for attend in attention:
                x = attend(x)
        return self.output_layer(as_maps(x, torch.float32)).tanh()


class DiscriminatorBlock(nn.Module):
    """Is residual and, with `down`, halves the size: [NIHW] -> [NOHW]. Figure 15c. The first reads a picture, without a ReLU."""

    def __init__(self, in_channels: int, out_channels: int, down: bool, first: bool, dtype: torch.dtype, eps: float) -> None:
        super().__init__()
        self.down, self.first, self.dtype = down, first, dtype
        self.conv1, self.conv2 = conv(in_channels, out_channels, 3, eps), conv(out_channels, out_channels, 3, eps)
        learned = down or in_channels != out_channels
        self.conv_sc = conv(in_channels, out_channels, 1, eps) if learned else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x [NIHW] -> [NOHW], or [N, O, H/2, W/2] with `down`"""
        x = as_maps(x, self.dtype)
        y = self.conv2(self.conv1(x if self.first else x.relu()).relu())
        if self.down:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        return y + self.conv_sc(x)


class Discriminator(nn.Module):
    """Maps pictures and c to logits, conditional by projection (Miyato & Koyama 2018). It takes the generator's arguments."""

    def __init__(self, c_dim: int, resolution: tuple[int, int], img_channels: int, channels: int = 96, attention: int = 64,
                 low_precision: str = 'none', low_precision_blocks: int = 0, num_outputs: int = 1, eps: float = EPS) -> None:
        super().__init__()
        check_outputs(num_outputs, c_dim)
        self.c_dim, self.resolution = c_dim, tuple(resolution)
        doublings = table_size(resolution)[1]
        widths = [img_channels, *(channels * width for width in D_WIDTHS[doublings])]
        self.blocks = nn.Sequential()
        for i in range(doublings + 1):
            level = doublings - i    # doublings from the base to the maps that come in
            dtype = block_dtype(low_precision, low_precision_blocks, level, doublings)
            block = DiscriminatorBlock(widths[i], widths[i + 1], halves(i, doublings), i == 0, dtype, eps)
            self.blocks.append(nn.Sequential(block, *attends_at(2 << level, attention, widths[i + 1], eps)))
        self.linear = linear(widths[-1], num_outputs, eps)
        self.embed = spectral_norm(embedding(c_dim, widths[-1]), eps) if c_dim else None

    def forward(self, img: Tensor, c: Tensor) -> Tensor:
        """img [NCHW] in [-1, 1] -> logits [N, num_outputs], float32."""
        x = self.blocks(img).float().relu().sum(dim=(2, 3))  # [N, C]
        logits = self.linear(x)
        return logits + (x * (c @ self.embed.weight)).sum(dim=1, keepdim=True) if self.c_dim else logits


def conv(in_channels: int, out_channels: int, kernel: int, eps: float, bias: bool = True) -> nn.Module:
    return spectral_norm(initialised(PlainConv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)), eps)


def linear(in_features: int, out_features: int, eps: float) -> nn.Module:
    return spectral_norm(initialised(nn.Linear(in_features, out_features)), eps)


def embedding(count: int, features: int) -> nn.Module:
    return initialised(nn.Embedding(count, features))


def conditional_norm(channels: int, condition_dim: int, eps: float) -> ConditionalBatchNorm:
    norm = ConditionalBatchNorm(channels, condition_dim, eps)
    for layer in (norm.gain, norm.bias):
        spectral_norm(initialised(layer), eps)
    return norm


def output_layer(channels: int, img_channels: int, eps: float) -> nn.Sequential:
    return nn.Sequential(BatchNorm(channels, eps), nn.ReLU(), conv(channels, img_channels, 3, eps))


def initialised(layer: nn.Module) -> nn.Module:
    """Give the layer an orthogonal weight (Saxe et al. 2014) and biases of 0, and return it."""
    nn.init.orthogonal_(layer.weight)
    if getattr(layer, 'bias', None) is not None:
        nn.init.zeros_(layer.bias)
    return layer


def attends_at(side: int, attention: int, channels: int, eps: float) -> list[nn.Module]:
    return [SelfAttention(channels, eps)] if side == attention else []


def halves(block: int, doublings: int) -> bool:
    """Tell whether D's block halves its maps. At 32 px, D stops at 8 px, as in Miyato et al. 2018, table 4."""
    return block < (2 if doublings == 3 else doublings)


def double(x: Tensor) -> Tensor:
    """[NCHW] -> [N, C, 2H, 2W], by the nearest pixel."""
    return F.interpolate(x, scale_factor=2)


def table_size(resolution: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """(H, W) -> base size and doublings. Raises ValueError if the tables have no such network."""
    base, doublings = base_and_doublings(resolution)
    if doublings not in G_WIDTHS:
        sizes = ', '.join(str(4 << known) for known in G_WIDTHS)
        raise ValueError(f'resolution {resolution[0]}x{resolution[1]}: the published channels are for {sizes} px; give the '
                         'shorter side one of these, or up to 7/4 of it')
    return base, doublings


def from_published(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename published weights for `load_state_dict`. Normalised ones have a vector u0 [1, out] and a value sv0 [1]."""
    renamed = {}
    for name, tensor in state_dict.items():
        layer, _, last = name.rpartition('.')
        if last in ('weight', 'u0', 'sv0') and f'{layer}.u0' in state_dict:
            name = f'{layer}.parametrizations.weight.' + ('original' if last == 'weight' else f'0.{last}')
        renamed[name] = tensor.reshape(1) if last == 'gamma' else tensor
    return renamed
