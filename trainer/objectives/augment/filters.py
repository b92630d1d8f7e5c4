"""ADA's image-space filtering amplifies four octave bands at random.

Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", appendix B.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from imago.trainer.objectives.augment.sampling import constant, extend, with_probability

# This is H(z) H(1/z) / 2 of the symlet with 2 vanishing moments, taps -3 ... 3. The highpass has the rest up to 1.
HALF_BAND = (-1 / 32, 0, 9 / 32, 1 / 2, 9 / 32, 0, -1 / 32)
POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)   # expected power of each band of a picture, whose spectrum falls as 1/f
GAIN_DEVIATION = 1.0                        # octaves


def octave_bands() -> Tensor:
    """Return symmetric taps [4, 43], float64, of the bands up to pi/8, pi/4, pi/2 and pi. Their sum is the identity."""
    lowpass, bands = torch.ones(1, dtype=torch.float64), []
    for octave in range(3):
        half_band = torch.zeros(6 * 2 ** octave + 1, dtype=torch.float64)
        half_band[::2 ** octave] = torch.tensor(HALF_BAND, dtype=torch.float64)
        lower = _convolve(lowpass, half_band)
        bands.insert(0, F.pad(lowpass, [(len(lower) - len(lowpass)) // 2] * 2) - lower)
        lowpass = lower
    bands.insert(0, lowpass)
    return torch.stack([F.pad(band, [(len(lowpass) - len(band)) // 2] * 2) for band in bands])


def random_gains(images: Tensor, p: Tensor | float) -> Tensor:
    """images [NCHW] -> random gains of the four bands, [N, 4]. Each band's change keeps the picture's expected power."""
    power = constant(POWER, images)
    gains = images.new_ones(len(images), 4)
    for band in range(4):
        turn = images.new_ones(len(images), 4)
        turn[:, band] = torch.exp2(torch.randn_like(turn[:, band]) * GAIN_DEVIATION)
        gains = gains * with_probability(p, turn / (turn.square() @ power).sqrt()[:, None], 1)
    return gains


def filter_bands(images: Tensor, gains: Tensor) -> Tensor:
    """Multiply each band of [NCHW] by its gain [N, 4], along both axes -> [NCHW]. Samples with gains of 1 stay exactly as they
    are."""
    count, channels, height, width = images.shape
    taps = gains @ constant(octave_bands, gains)                                       # [N, 43], symmetric
    taps, margin = taps.repeat_interleave(channels, dim=0)[:, None], taps.shape[1] // 2
    padded = extend(extend(images, 2, -margin, height + margin), 3, -margin, width + margin)
    padded = padded.flatten(0, 1)[None]                                           # [1, N * C, H + 42, W + 42]
    filtered = F.conv2d(padded, taps[:, :, None], groups=count * channels)
    filtered = F.conv2d(filtered, taps[:, :, :, None], groups=count * channels)
    same = (gains == 1).all(dim=1)[:, None, None, None]
    return torch.where(same, images, filtered[0].unflatten(0, (count, channels)))


def _convolve(a: Tensor, b: Tensor) -> Tensor:
    return F.conv1d(a[None, None], b.flip(0)[None, None], padding=len(b) - 1)[0, 0]
