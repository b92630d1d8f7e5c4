"""This is adaptive discriminator augmentation.

Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", sections 2 and 3, appendix B.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from imago.trainer.objectives.augment.color import random_colors, recolor
from imago.trainer.objectives.augment.corruption import add_noise, random_cutout
from imago.trainer.objectives.augment.filters import filter_bands, random_gains
from imago.trainer.objectives.augment.geometry import move, random_affine, random_blit

GROUPS = ('blit', 'geometry', 'color', 'filter', 'noise', 'cutout')


@dataclass(frozen=True)
class ADA:
    """Applies those of the 18 published transforms that are in `groups`, at their published strength. Each comes to each sample
    with its own chance p.

    resolution: (H, W); pictures may be smaller as long as they have this shape. Non-square ones are turned by 180 degrees
    only, not by 90. factors: the chance of a group as a share of p; 1 if none is given. Raises ValueError for unknown groups,
    and for channels other than 1 or 3.
    """

    groups: Sequence[str]
    channels: int
    resolution: tuple[int, int]
    factors: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = [group for group in (*self.groups, *self.factors) if group not in GROUPS]
        if unknown:
            raise ValueError(f'augmentation group {unknown[0]!r} is unknown: take some of {", ".join(GROUPS)}')
        if self.channels not in (1, 3):
            raise ValueError(f'ADA takes pictures of 1 or 3 channels, not {self.channels}: use another augmentation')

    def __call__(self, images: Tensor, p: Tensor | float) -> Tensor:
        """[NCHW] in [-1, 1] -> [NCHW]. With p = 0, pictures stay exactly the same. Gradients of any order exist."""
        chance = {group: p * self.factors.get(group, 1.0) for group in self.groups}
        if 'blit' in chance or 'geometry' in chance:
            square = self.resolution[0] == self.resolution[1]
            blit = random_blit(images, chance.get('blit', 0.0), quarter_turns=square)
            images = move(images, blit, random_affine(images, chance['geometry']) if 'geometry' in chance else None)
        if 'color' in chance:
            images = recolor(images, *random_colors(images, chance['color']))
        if 'filter' in chance:
            images = filter_bands(images, random_gains(images, chance['filter']))
        if 'noise' in chance:
            images = add_noise(images, chance['noise'])
        if 'cutout' in chance:
            images = random_cutout(images, chance['cutout'])
        return images


def adapt_p(p: Tensor, sign_mean: Tensor, images: int, target: float = 0.6, speed_kimg: float = 500.0) -> Tensor:
    """Return p [] after `images` more images; it grows if r_t = E[sign(D(real))] = `sign_mean` [] is above the target.

    p += sign(r_t - target) images / (1000 speed_kimg), kept in [0, 1]. Section 3.
    """
    return (p + torch.sign(sign_mean - target) * (images / (1000 * speed_kimg))).clamp(0, 1)
