"""Networks. A family is a file here and a line in MODELS."""

from torch import nn

from trainer.models import began, biggan, biggan_deep, dcgan, pggan, r3gan, sngan, stylegan1, stylegan2
from trainer.models.several import SeveralGenerators
from trainer.models.spectral import normalise_weights
from trainer.models.stylegan2 import mix_styles

MODELS = {  # name -> (generator, discriminator)
    'stylegan2': (stylegan2.Generator, stylegan2.Discriminator),
    'stylegan1': (stylegan1.Generator, stylegan1.Discriminator),
    'pggan': (pggan.Generator, pggan.Discriminator),
    'biggan': (biggan.Generator, biggan.Discriminator),
    'biggan-deep': (biggan_deep.Generator, biggan_deep.Discriminator),
    'dcgan': (dcgan.Generator, dcgan.Discriminator),
    'sngan': (sngan.Generator, sngan.Discriminator),
    'r3gan': (r3gan.Generator, r3gan.Discriminator),
    'began': (began.Generator, began.Discriminator),
}


def build_generator(name: str, options: dict) -> nn.Module:
    """The generator of a family. `options`: its constructor's, and
    generators: how many of them in one, see several.py; normalise: (kind, share) of its weights, see spectral.py.
    """
    own = {key: value for key, value in options.items() if key not in ('generators', 'normalise')}
    count, make = options.get('generators', 1), MODELS[name][0]
    G = make(**own) if count == 1 else SeveralGenerators([make(**own) for _ in range(count)])
    return normalise_weights(G, *options['normalise']) if 'normalise' in options else G


def latents_of(G: nn.Module) -> str:
    """The distribution of a generator's latents, of randomness.LATENTS; families without the option take normal ones."""
    first = G.generators[0] if isinstance(G, SeveralGenerators) else G
    return getattr(first, 'latents', 'normal')


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


__all__ = ['MODELS', 'build_generator', 'latents_of', 'mix_styles', 'num_parameters']
