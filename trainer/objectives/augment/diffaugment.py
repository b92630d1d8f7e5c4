"""DiffAugment, with ranges as published. Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training",
section 3."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from imago.trainer.objectives.augment.corruption import random_cutout
from imago.trainer.objectives.augment.sampling import take_pixels


def random_color(images: Tensor) -> Tensor:
    """Change brightness by +-0.5, then saturation by 0 ... 2 times, then contrast by 0.5 ... 1.5 times. [NCHW] -> [NCHW]."""
    brightness, saturation, contrast = images.new_empty(3, len(images), 1, 1, 1).uniform_()
    images = images + (brightness - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * (saturation * 2)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * (contrast + 0.5)


def random_translation(images: Tensor) -> Tensor:
    """Shift by whole pixels, up to 1/8 of the sides; new pixels are 0. [NCHW] -> [NCHW]."""
    def sources(size: int) -> Tensor:
        """Return the source [N, size] of each pixel in a picture that is padded by one pixel, from which new ones come."""
        furthest = round(size / 8)
        shift = torch.randint(-furthest, furthest + 1, [len(images), 1], device=images.device)
        return (torch.arange(size, device=images.device) - shift).clamp(-1, size) + 1

    x, y = sources(images.shape[3]), sources(images.shape[2])
    return take_pixels(F.pad(images, [1, 1, 1, 1]), x[:, None, :], y[:, :, None])


POLICIES = {'color': random_color, 'translation': random_translation, 'cutout': lambda images: random_cutout(images, 1.0)}


@dataclass(frozen=True)
class DiffAugment:
    """Applies `policies` one after the other to every sample. Raises ValueError for unknown ones."""

    policies: Sequence[str]

    def __post_init__(self) -> None:
        unknown = [policy for policy in self.policies if policy not in POLICIES]
        if unknown:
            raise ValueError(f'DiffAugment policy {unknown[0]!r} is unknown: take some of {", ".join(POLICIES)}')

    def __call__(self, images: Tensor) -> Tensor:
        """[NCHW] in [-1, 1] -> [NCHW]. Gradients of any order exist."""
        for policy in self.policies:
            images = POLICIES[policy](images)
        return images
