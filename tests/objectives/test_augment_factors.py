"""A chance of its own for each of ADA's groups."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from imago.trainer.config.load import load_config
from imago.trainer.games.augmentation import Augmentation
from imago.trainer.objectives.augment import ADA
from imago.trainer.objectives.augment.ada import GROUPS


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize('group', GROUPS)
def test_a_factor_is_of_its_group_alone(group):
    images = torch.rand(400, 3, 8, 8) * 2 - 1
    chances = []
    for factors, p in ({group: 0.5}, 0.5), ({}, 0.25), ({other: 0.5 for other in GROUPS if other != group}, 0.25):
        torch.manual_seed(1)
        chances.append(ADA((group,), 3, (8, 8), factors)(images, p))
    assert chances[0].equal(chances[1]) and chances[0].equal(chances[2])
    unchanged = (chances[0] == images).flatten(1).all(dim=1)
    assert 0 < unchanged.sum() < 400
    assert ADA((group,), 3, (8, 8), {group: 0.0})(images, 1.0).equal(images)


def test_r3gan_256_augments_as_published():
    """At full strength, 0.3: blitting, geometry and the cutout with this chance, the five colour transforms with half of it."""
    config = load_config('r3gan-256', ['data.path=x'])
    augment = Augmentation(config.augment, SimpleNamespace(channels=3, resolution=(8, 8)), None, None).transform
    p = config.augment.p.end
    assert p == 0.3 and set(augment.groups) == {'blit', 'geometry', 'color', 'cutout'}
    images = (torch.rand(1, 3, 8, 8) * 2 - 1).expand(20000, -1, -1, -1)
    changed = {}
    for group in ('color', 'cutout'):
        changed[group] = (replace(augment, groups=(group,))(images, p) != images).flatten(1).any(dim=1).float().mean().item()
    # flips of luma do nothing half of the time; cutouts always do something, as their centre lies inside
    assert changed['color'] == pytest.approx(1 - 0.85 ** 4 * (1 - 0.15 / 2), abs=0.01)
    assert changed['cutout'] == pytest.approx(0.3, abs=0.01)
