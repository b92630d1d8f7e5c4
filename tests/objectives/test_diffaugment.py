"""DiffAugment's transforms within their published ranges. What it shares with ADA is in test_augment.py."""

import pytest
import torch
from torch.nn import functional as F

from imago.trainer.objectives.augment import DiffAugment
from imago.trainer.objectives.augment.diffaugment import random_color, random_translation


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def mean(images):
    return images.mean(dim=(1, 2, 3))


def grey_spread(images):
    return (images.mean(dim=1) - mean(images)[:, None, None]).norm(dim=(1, 2))


def chroma(images):
    return (images - images.mean(dim=1, keepdim=True)).flatten(1).norm(dim=1)


def test_diffaugment_translates_by_an_eighth_and_pads_with_0():
    images = torch.arange(1, 16 * 8 + 1).float().reshape(1, 1, 8, 16).repeat(500, 1, 1, 1)
    moved = random_translation(images)
    padded = F.pad(images[0, 0], [2, 2, 1, 1])
    crops = torch.stack([padded[y:y + 8, x:x + 16] for y in range(3) for x in range(5)])    # [15, 8, 16]
    same = (moved == crops).flatten(2).all(dim=2)                                           # [500, 15]
    assert (same.sum(dim=1) == 1).all() and same.any(dim=0).all()


def test_diffaugment_colours_within_the_published_ranges():
    images = (torch.rand(1, 3, 4, 4) * 2 - 1).repeat(4000, 1, 1, 1)
    changed = random_color(images)
    brightness = mean(changed) - mean(images)
    contrast = grey_spread(changed) / grey_spread(images)
    saturation = chroma(changed) / chroma(images) / contrast
    for values, low, high in (brightness, -0.5, 0.5), (contrast, 0.5, 1.5), (saturation, 0, 2):
        assert values.min().item() == pytest.approx(low, abs=0.01) and values.max().item() == pytest.approx(high, abs=0.01)


def test_diffaugment_cuts_every_picture():
    assert (DiffAugment(['cutout'])(torch.ones(200, 1, 8, 8)) == 0).flatten(1).any(1).all()
