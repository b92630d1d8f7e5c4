"""Networks. A family is a file here and a line in MODELS."""

from torch import nn

from trainer.models import stylegan2
from trainer.models.stylegan2 import mix_styles

MODELS = {'stylegan2': (stylegan2.Generator, stylegan2.Discriminator)}  # name -> (generator, discriminator)


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


__all__ = ['MODELS', 'mix_styles', 'num_parameters']
