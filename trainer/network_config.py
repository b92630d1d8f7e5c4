"""The options of each family of networks, and what the rest of the configuration must know of it.

An option goes to the constructors (generator, discriminator, or both) that have an argument of its name.
"""

from typing import Annotated, ClassVar, Literal, Union, get_args

from pydantic import Field, PositiveInt

from trainer.schema import Section, Share

Latents = Literal['normal', 'uniform']
Depth = Annotated[int, Field(ge=1, le=64)]    # of what is built one by one: layers, blocks, generators


class NetworkSection(Section):
    styles: ClassVar[bool] = False          # mapping and synthesis: style mixing, path length, truncation psi
    grows: ClassVar[bool] = False           # from a low resolution to the full one
    energy: ClassVar[bool] = False          # D returns reconstruction errors, not logits
    normalised: ClassVar[bool] = False      # has spectral norm of its own
    batch_norm_in_d: ClassVar[bool] = False
    demodulated: ClassVar[bool] = False     # G's weights have no scale

    z_dim: PositiveInt = 512
    generators: Depth = 1                   # MAD-GAN: several that share all but their last layers
    identity_dim: int = Field(0, ge=0)      # SD-GAN: the first so many latents are a pair's; with data.pairs


class LowPrecision(NetworkSection):
    low_precision: Literal['none', 'bf16', 'fp16'] = 'none'
    low_precision_blocks: int = Field(0, ge=0)    # how many blocks, from the highest resolution down


class Equalised(LowPrecision):
    channel_base: PositiveInt = 32768             # channels at a resolution: min(channel_base / resolution, channel_max)
    channel_max: PositiveInt = 512
    mbstd_group: PositiveInt = 4


class StyleGAN2(Equalised):
    styles: ClassVar[bool] = True
    demodulated: ClassVar[bool] = True
    name: Literal['stylegan2'] = 'stylegan2'
    w_dim: PositiveInt = 512
    mapping_layers: Depth = 8
    style_mixing: Share = 0.9


class StyleGAN1(Equalised):
    styles: ClassVar[bool] = True
    grows: ClassVar[bool] = True
    name: Literal['stylegan1']
    channel_base: PositiveInt = 16384
    w_dim: PositiveInt = 512
    mapping_layers: Depth = 8
    style_mixing: Share = 0.9


class PGGAN(Equalised):
    grows: ClassVar[bool] = True
    name: Literal['pggan']
    channel_base: PositiveInt = 16384


class BigGAN(LowPrecision):
    normalised: ClassVar[bool] = True
    name: Literal['biggan']
    z_dim: PositiveInt = 120                      # 20 for each doubling and for the coarsest maps
    channels: PositiveInt = 96
    shared_dim: PositiveInt = 128                 # of the class embedding
    attention: PositiveInt = 64                   # side of the maps with self-attention, where the coarsest count as 4 px


class BigGANDeep(LowPrecision):
    normalised: ClassVar[bool] = True
    name: Literal['biggan-deep']
    z_dim: PositiveInt = 128
    channels: PositiveInt = 128
    shared_dim: PositiveInt = 128
    depth: Depth = 2                              # blocks at each size
    attention: PositiveInt = 64


class DCGAN(NetworkSection):
    batch_norm_in_d: ClassVar[bool] = True
    name: Literal['dcgan']
    z_dim: PositiveInt = 100
    latents: Latents = 'normal'                   # N(0, 1); published: uniform in [-1, 1]
    channels: PositiveInt = 64


class SNGAN(NetworkSection):
    normalised: ClassVar[bool] = True
    name: Literal['sngan']
    z_dim: PositiveInt = 128
    channels: PositiveInt = 64
    widths: Literal['doubling', 'constant'] = 'doubling'   # of blocks, fine to coarse; constant: as for CIFAR-10


class R3GAN(LowPrecision):
    name: Literal['r3gan']
    z_dim: PositiveInt = 64
    channel_base: PositiveInt = 24576             # as Equalised's
    channel_max: PositiveInt = 768
    blocks: Depth = 2                             # at each resolution
    expansion: PositiveInt = 2                    # of the channels inside a block
    group_size: PositiveInt = 16                  # channels of a group of the 3x3 convolutions
    label_dim: PositiveInt = 64                   # of the class embeddings ...
    d_label_dim: PositiveInt | None = None        # ... in D; None: as in G; published: 768 for CIFAR-10, 1536 for ImageNet


class BEGAN(NetworkSection):
    energy: ClassVar[bool] = True
    name: Literal['began']
    z_dim: PositiveInt = 64
    latents: Latents = 'normal'                   # N(0, 1); published: uniform in [-1, 1]
    channels: PositiveInt = 128
    code_dim: PositiveInt = 64                    # of the discriminator's code


SECTIONS = (StyleGAN2, StyleGAN1, PGGAN, BigGAN, BigGANDeep, DCGAN, SNGAN, R3GAN, BEGAN)
NETWORK_NAMES = tuple(get_args(section.model_fields['name'].annotation)[0] for section in SECTIONS)
NetworkConfig = Annotated[Union[SECTIONS], Field(discriminator='name')]
