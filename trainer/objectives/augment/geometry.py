"""ADA's pixel blitting and geometric transforms are composed into one motion of the picture.

A motion is kept as its inverse, [N, 3, 3] on (x, y, 1), which says where a pixel comes from, in pixels from the centre.
Legend: N batch, C channels, H W pixels. Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", B.
"""

from math import pi

import torch
from torch import Tensor

from imago.kernels import upfirdn2d
from imago.trainer.objectives.augment.sampling import (
    at_identity,
    constant,
    extend,
    read_bilinear,
    reflect,
    take_pixels,
    with_probability,
)

# This lowpass of the symlet with 6 vanishing moments is orthonormal to its shifts by 2, so up- and down-sampling cancel
# exactly.
SYM6 = (0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
        0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
        0.0017677118642428036, -0.007800708325034148)
SYM6_CENTRE = sum(i * tap for i, tap in enumerate(SYM6)) / sum(SYM6)   # taps, by which it delays smooth pictures
MAX_SHIFT = 0.125          # a share of the picture's side; for fractional shifts it is the standard deviation
SCALE_DEVIATION = 0.2      # octaves


def random_blit(images: Tensor, p: Tensor | float, quarter_turns: bool = True) -> Tensor:
    """Draw flips, turns by 90 degrees (without `quarter_turns` 180) and whole-pixel shifts for images [NCHW]: [N, 3, 3]."""
    count, _, height, width = images.shape
    uniform = images.new_empty(4, count).uniform_()
    flip = with_probability(p, (uniform[0] * 2).floor())
    turns = with_probability(p, (uniform[1] * 4).floor() if quarter_turns else (uniform[1] * 2).floor() * 2)
    shift = with_probability(p, (uniform[2:].t() * 2 - 1) * MAX_SHIFT)  # [N, 2]
    inverse = scaling(1 - 2 * flip, torch.ones_like(flip))
    inverse = inverse @ rotation(turns * (pi / 2))
    return inverse @ translation(-(shift[:, 0] * width).round(), -(shift[:, 1] * height).round())


def random_affine(images: Tensor, p: Tensor | float) -> Tensor:
    """Draw scaling, rotation, anisotropic scaling, rotation and fractional shifts for images [NCHW]: [N, 3, 3]."""
    count, _, height, width = images.shape
    p_rotation = 1 - (1 - p) ** 0.5                 # so that p is the chance of at least one of the two
    normal, uniform = images.new_empty(4, count).normal_(), images.new_empty(2, count).uniform_(-pi, pi)
    scale = with_probability(p, torch.exp2(normal[0] * SCALE_DEVIATION), 1)
    before = with_probability(p_rotation, uniform[0])
    stretch = with_probability(p, torch.exp2(normal[1] * SCALE_DEVIATION), 1)
    after = with_probability(p_rotation, uniform[1])
    shift = with_probability(p, normal[2:].t() * MAX_SHIFT)  # [N, 2]
    inverse = scaling(1 / scale, 1 / scale) @ rotation(before) @ scaling(1 / stretch, stretch) @ rotation(after)
    return inverse @ translation(-shift[:, 0] * width, -shift[:, 1] * height)


def move(images: Tensor, blit: Tensor, affine: Tensor | None = None) -> Tensor:
    """Move [NCHW] by the inverses `blit`, then `affine`, both [N, 3, 3], and mirror it at the edges -> [NCHW].

    Pixels of samples whose `affine` is the identity are copied.
    """
    height, width = images.shape[2:]
    x, y = (torch.arange(size, device=images.device, dtype=images.dtype) - (size - 1) / 2 for size in (width, height))
    x, y = _sources(blit, x, y)
    x, y = (x + (width - 1) / 2).round().long(), (y + (height - 1) / 2).round().long()
    copied = take_pixels(images, reflect(x, width), reflect(y, height))
    return copied if affine is None else torch.where(at_identity(affine), copied, resample(images, blit @ affine))


def resample(images: Tensor, inverse: Tensor) -> Tensor:
    """Move [NCHW] by `inverse` [N, 3, 3] at twice the resolution, where bilinear reading blurs little -> [NCHW].

    A picture that is mirrored without end repeats every 2 (size - 1) pixels, so one period, up-sampled, serves positions at any
    distance outside. Margins would have to be as wide as the widest motion in the batch.
    """
    height, width = images.shape[2:]
    taps = constant(SYM6, images)
    period = extend(extend(images, 2, -5, 2 * height - 1), 3, -5, 2 * width - 1)
    period = upfirdn2d(period, taps, up=2, padding=(1, -1, 1, -1))            # [N, C, 4H - 3, 4W - 3]
    # Sample i of the up-sampled picture lies at (i - SYM6_CENTRE) / 2. Down-sampling reads 10 samples beyond the last pixel's.
    x, y = ((torch.arange(2 * size + 10, device=images.device, dtype=images.dtype) - SYM6_CENTRE - (size - 1)) / 2
            for size in (width, height))
    x, y = _sources(inverse, x, y)
    x = (2 * x + (width - 1 + SYM6_CENTRE)) % (4 * (width - 1))
    y = (2 * y + (height - 1 + SYM6_CENTRE)) % (4 * (height - 1))
    return upfirdn2d(read_bilinear(period, x, y), taps, down=2, flip_filter=True)


def scaling(x: Tensor, y: Tensor) -> Tensor:
    """Scale by x and y [N]: [N, 3, 3]."""
    return torch.diag_embed(torch.stack([x, y, torch.ones_like(x)], dim=1))


def rotation(angle: Tensor) -> Tensor:
    """Rotate by angle [N], in radians: [N, 3, 3]."""
    matrix = _identity(angle)
    matrix[:, 0, 0] = matrix[:, 1, 1] = angle.cos()
    matrix[:, 1, 0] = angle.sin()
    matrix[:, 0, 1] = -matrix[:, 1, 0]
    return matrix


def translation(x: Tensor, y: Tensor) -> Tensor:
    """Shift by x and y [N], in pixels: [N, 3, 3]."""
    matrix = _identity(x)
    matrix[:, 0, 2], matrix[:, 1, 2] = x, y
    return matrix


def _identity(like: Tensor) -> Tensor:
    return torch.eye(3, dtype=like.dtype, device=like.device).repeat(len(like), 1, 1)


def _sources(inverse: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Tell where the pixels of columns x [w] and rows y [h] come from: columns and rows [N, h, w], all from the centre."""
    inverse = inverse[:, :2, :, None, None]
    sources = inverse[:, :, 0] * x + inverse[:, :, 1] * y[:, None] + inverse[:, :, 2]     # [N, 2, h, w]
    return sources[:, 0], sources[:, 1]
