"""This package holds the networks, by role and name. A family is a file here, a line for each of its networks, and its options
in config/networks.py.

The contract of a role:

generator       `G(z [N, z_dim], c [N, c_dim])` -> pictures [NCHW] float32, about [-1, 1]. It has `z_dim`, `c_dim`, `resolution`
                (H, W) and `num_ws`: how many layers take a style, 0 if none does. If several generators may share its first
                layers, `tail` names the others. A generator with styles is
                `synthesis(mapping(z, c, truncation_psi), noise)`.
discriminator   `D(img [NCHW], c [N, c_dim])` -> logits [N, num_outputs] float32.
"""

import inspect

from torch import nn

from imago.trainer.config.networks import NetworkSection, add_section
from imago.trainer.config.schema import name_of
from imago.trainer.models import began, biggan, biggan_deep, dcgan, pggan, r3gan, sngan, stylegan1, stylegan2
from imago.trainer.models.several import SeveralGenerators
from imago.trainer.models.spectral import normalise_weights
from imago.trainer.models.stylegan2 import mix_styles

FAMILIES = {
    'stylegan2': stylegan2, 'stylegan1': stylegan1, 'pggan': pggan, 'biggan': biggan, 'biggan-deep': biggan_deep,
    'dcgan': dcgan, 'sngan': sngan, 'r3gan': r3gan, 'began': began,
}
NETWORKS = {
    'generator': {name: family.Generator for name, family in FAMILIES.items()},
    'discriminator': {name: family.Discriminator for name, family in FAMILIES.items()},
}


def add_network(section: type[NetworkSection], generator: type[nn.Module], discriminator: type[nn.Module]) -> None:
    """Let `network.name` take the name of `section`. Raises ValueError if another family has this name."""
    add_section(section)
    NETWORKS['generator'][name_of(section)], NETWORKS['discriminator'][name_of(section)] = generator, discriminator


def build_network(role: str, model: str, options: dict) -> nn.Module:
    """Build a new network from its constructor's `options`; `normalise` among them is (kind, share), see spectral.py.

    Raises ValueError for an unknown name, and for an option that the constructor does not take.
    """
    make = NETWORKS[role].get(model)
    if make is None:
        raise ValueError(f'there is no {role} {model!r}; take one of {", ".join(NETWORKS[role])}')
    own = {key: value for key, value in options.items() if key != 'normalise'}
    if unknown := own.keys() - inspect.signature(make).parameters:
        raise ValueError(f'the {role} {model!r} takes no {", ".join(sorted(unknown))}')
    network = make(**own)
    return normalise_weights(network, *options['normalise']) if 'normalise' in options else network


def several(model: str, count: int, options: dict) -> SeveralGenerators:
    """Build one network that holds `count` generators."""
    return SeveralGenerators([build_network('generator', model, options) for _ in range(count)])


NETWORKS['generator']['several'] = several


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


__all__ = ['NETWORKS', 'add_network', 'build_network', 'mix_styles', 'num_parameters']
