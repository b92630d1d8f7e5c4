"""These augmentations add noise to a picture, or cut a rectangle out of it."""

import torch
from torch import Tensor

from imago.trainer.objectives.augment.sampling import with_probability

NOISE_DEVIATION = 0.1      # the noise's standard deviation is half-normal, with this parameter


def add_noise(images: Tensor, p: Tensor | float) -> Tensor:
    """Add Gaussian noise of a strength drawn for each sample. [NCHW] -> [NCHW]. Karras et al. 2020 (ADA), appendix B."""
    strength = with_probability(p, images.new_empty(len(images)).normal_().abs() * NOISE_DEVIATION)
    return images + strength[:, None, None, None] * torch.randn_like(images)


def random_cutout(images: Tensor, p: Tensor | float) -> Tensor:
    """Make a rectangle of half the sides grey, centred anywhere in the picture. [NCHW] -> [NCHW]."""
    centre = with_probability(p, images.new_empty(len(images), 2).uniform_(), -1)     # at -1 all of it is outside
    return cut_out(images, centre[:, 0], centre[:, 1])


def cut_out(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """[NCHW] -> [NCHW], set to 0 within a quarter of the sides from x and y [N], which are 0 ... 1 inside the picture."""
    columns, rows = (_near(centre, size) for centre, size in ((x, images.shape[3]), (y, images.shape[2])))
    hole = columns[:, None, :] & rows[:, :, None]     # [N, H, W]
    return images.masked_fill(hole[:, None], 0)


def _near(centre: Tensor, size: int) -> Tensor:
    """Tell which of `size` pixels lie in the half of the side around `centre` [N]: [N, size]."""
    first, end = ((centre + side) * size for side in (-0.25, 0.25))
    pixel = torch.arange(size, device=centre.device)
    return (pixel >= first.round()[:, None]) & (pixel < end.round()[:, None])
