"""How different pictures are from one another, cheaply: by their colours on a grid of 8 x 8 areas.

These features stay the same over a run, and need no network and no file. D's own would change with it, and in a collapse
are what is broken. They see composition and colour, not texture: enough for pictures that come out alike.
"""

from statistics import mean

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

SIDE = 8           # areas
NEAR_COPY = 0.03   # root mean square difference, where 1 is from black to white; of 64 emoji the nearest two are 0.037 apart


def area_colours(pictures: np.ndarray) -> Tensor:
    """[NHWC] uint8 -> [N, C * SIDE * SIDE] in [0, 1]."""
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    return functional.adaptive_avg_pool2d(images, SIDE).flatten(1)


def distances(features: Tensor) -> Tensor:
    """Root mean square differences [N, N] between rows of [N, d]."""
    exact = 'donot_use_mm_for_euclid_dist'     # the other way finds no copies: its rounding is as large
    return torch.cdist(features, features, compute_mode=exact) / features.shape[1] ** 0.5


def mean_distance(features: Tensor) -> float:
    """Between two different rows of [N, d]; 0 for a single one."""
    count = len(features)
    return distances(features).sum().item() / max(count * (count - 1), 1)


def near_copies(features: Tensor) -> float:
    """The share of rows of [N, d] that have another one nearer than NEAR_COPY."""
    apart = distances(features).fill_diagonal_(float('inf'))
    return (apart.min(dim=1).values < NEAR_COPY).float().mean().item()


def diversity_of(fakes: Tensor, reals: Tensor, fake_labels: Tensor, real_labels: Tensor) -> dict[str, float]:
    """`diversity` and `duplicates` of fakes [N, d], against reals [M, d]; and of the worst class where there are several.

    A class with no two different reals is measured by the other classes' mean. What no reals can measure is left out.
    """
    found = {'duplicates': near_copies(fakes)}
    usual = mean_distance(reals)
    if usual > NEAR_COPY:
        found['diversity'] = mean_distance(fakes) / usual
    classes = fake_labels.unique()
    if len(classes) < 2:
        return found
    fakes_of = {int(label): fakes[fake_labels == label] for label in classes}
    spreads = {label: mean_distance(reals[real_labels == label]) for label in fakes_of}
    known = [spread for spread in spreads.values() if spread > NEAR_COPY]
    found['class_duplicates'] = max(near_copies(own) for own in fakes_of.values())
    if known:
        found['class_diversity'] = min(mean_distance(own) / (spreads[label] if spreads[label] > NEAR_COPY else mean(known))
                                       for label, own in fakes_of.items())
    return found
