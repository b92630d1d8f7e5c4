"""ADA's colour transforms are composed into one affine map of (r, g, b).

Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", appendix B.
"""

from math import pi, sqrt

import torch
from torch import Tensor

from imago.trainer.objectives.augment.sampling import with_probability

BRIGHTNESS_DEVIATION = 0.2
CONTRAST_DEVIATION = 0.5       # octaves
SATURATION_DEVIATION = 1.0     # octaves


def random_colors(images: Tensor, p: Tensor | float) -> tuple[Tensor, Tensor]:
    """Compose contrast, luma flip, hue and saturation, drawn for images [NCHW]: matrices [N, 3, 3], and brightness [N]."""
    normal = images.new_empty(3, len(images)).normal_()
    uniform = images.new_empty(2, len(images)).uniform_()
    brightness = with_probability(p, normal[0] * BRIGHTNESS_DEVIATION)
    contrast = with_probability(p, torch.exp2(normal[1] * CONTRAST_DEVIATION), 1)
    flip = with_probability(p, (uniform[0] * 2).floor())
    angle = with_probability(p, (uniform[1] * 2 - 1) * pi)
    saturation = with_probability(p, torch.exp2(normal[2] * SATURATION_DEVIATION), 1)
    return color_matrix(contrast, flip, angle, saturation), brightness


def color_matrix(contrast: Tensor, flip: Tensor, angle: Tensor, saturation: Tensor) -> Tensor:
    """Arguments [N] -> matrices [N, 3, 3]. Contrast scales, flip (0 or 1) mirrors luma, angle (radians) turns about luma, and
    saturation scales the distance from it."""
    contrast, flip, angle, saturation = (each[:, None, None] for each in (contrast, flip, angle, saturation))
    identity = torch.eye(3, dtype=contrast.dtype, device=contrast.device)
    luma = torch.full_like(identity, 1 / 3)        # projects onto the axis of greys
    turn = (identity.roll(1, 0) - identity.roll(-1, 0)) / sqrt(3)    # cross product with that axis
    # Each is the identity plus its change, so that no change is exactly 0.
    flipped = identity - 2 * flip * luma
    hue = identity + (1 - angle.cos()) * (luma - identity) + angle.sin() * turn
    return (identity + (saturation - 1) * (identity - luma)) @ hue @ flipped * contrast


def recolor(images: Tensor, matrix: Tensor, brightness: Tensor) -> Tensor:
    """Apply matrix [N, 3, 3] to images [NCHW] + brightness [N] -> [NCHW]. One channel counts as three equal ones."""
    if images.shape[1] == 1:
        matrix = matrix.sum(dim=(1, 2), keepdim=True) / 3
    images = images + brightness[:, None, None, None]
    # A matrix product might be computed in TF32.
    return (matrix[..., None, None] * images[:, None]).sum(dim=2)
