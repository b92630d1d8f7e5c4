"""This module measures cheaply how different pictures are from one another: by their colours on a grid of 8 x 8 areas.

These features stay the same over a run, and need no network and no file. D's own features would change during the run, and
in a collapse they are what is broken. Area colours show composition and colour but no texture, which is enough to find
pictures that come out alike.
"""

from statistics import mean

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

SIDE = 8           # areas
NEAR_COPY = 0.03   # root mean square difference, where black and white are 1 apart; the nearest two of 64 emoji are 0.037 apart


def area_colours(pictures: np.ndarray) -> Tensor:
    """Average pictures [NHWC] uint8 over their areas. Returns [N, C * SIDE * SIDE] in [0, 1]."""
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    return functional.adaptive_avg_pool2d(images, SIDE).flatten(1)


def distances(features: Tensor) -> Tensor:
    """Return the root mean square differences [N, N] between rows of [N, d]."""
    exact = 'donot_use_mm_for_euclid_dist'     # a matrix product would round away the distance between near copies
    return torch.cdist(features, features, compute_mode=exact) / features.shape[1] ** 0.5


def mean_distance(features: Tensor) -> float:
    """Return the mean distance between two different rows of [N, d]; it is 0 if there is only one row."""
    count = len(features)
    return distances(features).sum().item() / max(count * (count - 1), 1)


def near_copies(features: Tensor) -> float:
    """Return the share of rows of [N, d] that have another row nearer than NEAR_COPY."""
    apart = distances(features).fill_diagonal_(float('inf'))
    return (apart.min(dim=1).values < NEAR_COPY).float().mean().item()


def diversity_of(fakes: Tensor, reals: Tensor, fake_labels: Tensor, real_labels: Tensor) -> dict[str, float]:
    """Compare fakes [N, d], labels [N], with reals [M, d], labels [M]: `diversity` and `duplicates`, over all and per class.

    `class_diversity` and `class_duplicates` are those of the worst class, where there are several. A class without two
    different reals is measured by the other classes' mean. Values that no reals can measure are left out.
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
