"""D sees augmented pictures, both real and generated. Augmentations draw from PyTorch's default generator."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from imago.trainer.objectives.augment.ada import ADA, adapt_p
from imago.trainer.objectives.augment.diffaugment import DiffAugment

Augment = Callable[[Tensor, Tensor | float], Tensor]     # (images [NCHW] in [-1, 1], p) -> images

__all__ = ['ADA', 'AUGMENTS', 'Augment', 'DiffAugment', 'adapt_p', 'make_augment']


def _keep(groups: Sequence[str], factors: Mapping[str, float], policies: Sequence[str], channels: int,
          resolution: tuple[int, int]) -> Augment:
    return lambda images, p: images


def _ada(groups: Sequence[str], factors: Mapping[str, float], policies: Sequence[str], channels: int,
         resolution: tuple[int, int]) -> Augment:
    return ADA(groups, channels, resolution, factors)


def _diffaugment(groups: Sequence[str], factors: Mapping[str, float], policies: Sequence[str], channels: int,
                 resolution: tuple[int, int]) -> Augment:
    augment = DiffAugment(policies)
    return lambda images, p: augment(images)


AUGMENTS = {'none': _keep, 'ada': _ada, 'diffaugment': _diffaugment}


def make_augment(name: str, groups: Sequence[str], factors: Mapping[str, float], policies: Sequence[str], channels: int,
                 resolution: tuple[int, int]) -> Augment:
    """groups and factors are ADA's, policies are DiffAugment's; resolution is (H, W). Raises ValueError for unknown ones.

    The result maps (images [NCHW] in [-1, 1], p) to images [NCHW].
    """
    if name not in AUGMENTS:
        raise ValueError(f'augmentation {name!r} is unknown: take one of {", ".join(AUGMENTS)}')
    return AUGMENTS[name](groups, factors, policies, channels, resolution)
