"""This module has the options of each family of networks, and what the rest of the configuration must know of it.

An option is an argument of both constructors, the generator's and the discriminator's, unless it is listed below.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, SerializeAsAny

from imago.trainer.config.schema import Depth, Pixels, Section, Share, Width, Within, name_of, read_section

Channels = Annotated[int, Within(1, 1024)]    # channels of the finest layers; the coarsest have up to 16 times as many
Base = Annotated[int, Within(1, 1 << 24)]     # channels times pixels of a side

Latents = Literal['normal', 'uniform']


OF_G = {'z_dim', 'w_dim', 'mapping_layers', 'shared_dim', 'latents'}
OF_D = {'mbstd_group', 'code_dim', 'd_label_dim'}
OF_TRAINING = {'name', 'style_mixing'}


class NetworkSection(Section):
    styles: ClassVar[bool] = False          # G maps z to w: it has style mixing, path length, truncation psi
    grows: ClassVar[bool] = False           # from a low resolution to the full one
    made_for: ClassVar[str | None] = None   # the only game that it goes with
    normalised: ClassVar[bool] = False      # has spectral norm of its own
    batch_norm_in_d: ClassVar[bool] = False
    demodulated: ClassVar[bool] = False     # the scale of G's weights has no effect
    continuous: ClassVar[bool] = False      # conditions may be vectors of any floats, not only one-hot ones

    name: str
    z_dim: Width = 512


class LowPrecision(NetworkSection):
    low_precision: Literal['none', 'bf16', 'fp16'] = 'none'
    low_precision_blocks: Annotated[int, Within(0, 64)] = 0        # how many blocks, from the highest resolution down


class Equalised(LowPrecision):
    channel_base: Base = 32768                    # channels at a resolution: min(channel_base / resolution, channel_max)
    channel_max: Width = 512
    mbstd_group: Width = 4


class StyleGAN2(Equalised):
    styles: ClassVar[bool] = True
    demodulated: ClassVar[bool] = True
    continuous: ClassVar[bool] = True
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
    continuous: ClassVar[bool] = True
    name: Literal['biggan']
    z_dim: Width = 120                            # 20 for the coarsest maps and for each doubling
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
    widths: Literal['doubling', 'constant'] = 'doubling'   # of blocks, from fine to coarse; CIFAR-10 has constant ones


class R3GAN(LowPrecision):
    continuous: ClassVar[bool] = True
    name: Literal['r3gan']
    z_dim: Width = 64
    channel_base: Base = 24576                    # as in Equalised
    channel_max: Width = 768
    blocks: Depth = 2                             # at each resolution
    expansion: Depth = 2                          # factor of the channels inside a block
    group_size: Width = 16                        # channels in each group of the 3x3 convolutions
    label_dim: Width = 64                         # of G's class embeddings
    d_label_dim: Width | None = None              # of D's; None: as in G; published: 768 for CIFAR-10, 1536 for ImageNet


class BEGAN(NetworkSection):
    made_for: ClassVar[str | None] = 'began'    # D returns reconstruction errors, not logits
    name: Literal['began']
    z_dim: Width = 64
    latents: Latents = 'normal'                   # N(0, 1); published: uniform in [-1, 1]
    channels: Channels = 128
    code_dim: Width = 64                          # of the discriminator's code


SECTIONS: dict[str, type[NetworkSection]] = {}


def add_section(section: type[NetworkSection]) -> None:
    """Let `network.name` take the section's name. Raises ValueError if another family has this name."""
    name = name_of(section)
    if SECTIONS.setdefault(name, section) is not section:
        raise ValueError(f'there is a network {name} already; choose another name')


for _section in (StyleGAN2, StyleGAN1, PGGAN, BigGAN, BigGANDeep, DCGAN, SNGAN, R3GAN, BEGAN):
    add_section(_section)


def read_network(value: object) -> object:
    """Return the section of the family that `value` names, `stylegan2` by default."""
    return read_section(value, SECTIONS, 'stylegan2')


NetworkConfig = Annotated[SerializeAsAny[NetworkSection], BeforeValidator(read_network)]


def generator_options(network: NetworkSection) -> dict:
    """Return the arguments of the generator's constructor, as plain JSON values."""
    return network.model_dump(mode='json', exclude=OF_D | OF_TRAINING)


def discriminator_options(network: NetworkSection) -> dict:
    """Return the arguments of the discriminator's constructor, as plain JSON values."""
    return network.model_dump(mode='json', exclude=OF_G | OF_TRAINING)
