"""The options of each family of networks, and what the rest of the configuration must know of it.

An option goes to the constructors (generator, discriminator, or both) that have an argument of its name.
"""

from typing import Annotated, ClassVar, Literal, Union, get_args

from pydantic import Field

from trainer.config.schema import Depth, Pixels, Section, Share, Width, whole

Channels = whole(1, 1024)    # of the finest layers; the coarsest have up to 16 times as many
Base = whole(1, 1 << 24)     # channels times pixels of a side

Latents = Literal['normal', 'uniform']


class NetworkSection(Section):
    styles: ClassVar[bool] = False          # mapping and synthesis: style mixing, path length, truncation psi
    grows: ClassVar[bool] = False           # from a low resolution to the full one
    energy: ClassVar[bool] = False          # D returns reconstruction errors, not logits
    normalised: ClassVar[bool] = False      # has spectral norm of its own
    batch_norm_in_d: ClassVar[bool] = False
    demodulated: ClassVar[bool] = False     # G's weights have no scale

    z_dim: Width = 512
    generators: Depth = 1                   # MAD-GAN: several that share all but their last layers
    identity_dim: whole(0, 1 << 16) = 0     # SD-GAN: the first so many latents are a pair's; with data.pairs


class LowPrecision(NetworkSection):
    low_precision: Literal['none', 'bf16', 'fp16'] = 'none'
    low_precision_blocks: whole(0, 64) = 0        # how many blocks, from the highest resolution down


class Equalised(LowPrecision):
    channel_base: Base = 32768                    # channels at a resolution: min(channel_base / resolution, channel_max)
    channel_max: Width = 512
    mbstd_group: Width = 4


class StyleGAN2(Equalised):
    styles: ClassVar[bool] = True
    demodulated: ClassVar[bool] = True
    name: Literal['stylegan2'] = 'stylegan2'
    w_dim: Width = 512
    mapping_layers: Depth = 8
    style_mixing: Share = 0.9


class StyleGAN1(Equalised):
    styles: ClassVar[bool] = True
    grows: ClassVar[bool] = True
    name: Literal['stylegan1']
    channel_base: Base = 16384
    w_dim: Width = 512
    mapping_layers: Depth = 8
    style_mixing: Share = 0.9


class PGGAN(Equalised):
    grows: ClassVar[bool] = True
    name: Literal['pggan']
    channel_base: Base = 16384


class BigGAN(LowPrecision):
    normalised: ClassVar[bool] = True
    name: Literal['biggan']
    z_dim: Width = 120                            # 20 for each doubling and for the coarsest maps
    channels: Channels = 96
    shared_dim: Width = 128                       # of the class embedding
    attention: Pixels = 64                        # side of the maps with self-attention, where the coarsest count as 4 px


class BigGANDeep(LowPrecision):
    normalised: ClassVar[bool] = True
    name: Literal['biggan-deep']
    z_dim: Width = 128
    channels: Channels = 128
    shared_dim: Width = 128
    depth: Depth = 2                              # blocks at each size
    attention: Pixels = 64


class DCGAN(NetworkSection):
    batch_norm_in_d: ClassVar[bool] = True
    name: Literal['dcgan']
    z_dim: Width = 100
    latents: Latents = 'normal'                   # N(0, 1); published: uniform in [-1, 1]
    channels: Channels = 64


class SNGAN(NetworkSection):
    normalised: ClassVar[bool] = True
    name: Literal['sngan']
    z_dim: Width = 128
    channels: Channels = 64
    widths: Literal['doubling', 'constant'] = 'doubling'   # of blocks, fine to coarse; constant: as for CIFAR-10


class R3GAN(LowPrecision):
    name: Literal['r3gan']
    z_dim: Width = 64
    channel_base: Base = 24576                    # as Equalised's
    channel_max: Width = 768
    blocks: Depth = 2                             # at each resolution
    expansion: Depth = 2                          # of the channels inside a block
    group_size: Width = 16                        # channels of a group of the 3x3 convolutions
    label_dim: Width = 64                         # of the class embeddings ...
    d_label_dim: Width | None = None              # ... in D; None: as in G; published: 768 for CIFAR-10, 1536 for ImageNet


class BEGAN(NetworkSection):
    energy: ClassVar[bool] = True
    name: Literal['began']
    z_dim: Width = 64
    latents: Latents = 'normal'                   # N(0, 1); published: uniform in [-1, 1]
    channels: Channels = 128
    code_dim: Width = 64                          # of the discriminator's code


SECTIONS = (StyleGAN2, StyleGAN1, PGGAN, BigGAN, BigGANDeep, DCGAN, SNGAN, R3GAN, BEGAN)
NETWORK_NAMES = tuple(get_args(section.model_fields['name'].annotation)[0] for section in SECTIONS)
NetworkConfig = Annotated[Union[SECTIONS], Field(discriminator='name')]
