"""Precision, recall, density and coverage use balls around pictures that reach to their k-th neighbours."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from imago.trainer.ranks.progress import Progress

ENTRIES = 1 << 24           # distances in memory at a time: 64 MB
PRECISION_K, DENSITY_K = 3, 5   # as published


@dataclass(frozen=True)
class Manifold:
    """Holds what each picture contributes; the scores are the means."""

    precision: Tensor   # [fakes] 1 for those within a ball of a real; Kynkaanniemi et al. 2019, equation 2
    recall: Tensor      # [reals] 1 for those within a ball of a fake
    density: Tensor     # [fakes] number of balls of reals in which each lies, over k; Naeem et al. 2020, equation 6
    coverage: Tensor    # [reals] 1 for those with a fake in their ball; equation 7


def compare_manifolds(fakes: Tensor, reals: Tensor) -> Manifold:
    """Compare features [N, d] and [M, d], on one device, with more than 5 rows each."""
    centre = reals.mean(0)      # products of centred features lose fewer digits
    fakes, reals = fakes - centre, reals - centre
    real_radii, fake_radii = nearest_radii(reals, DENSITY_K), nearest_radii(fakes, PRECISION_K)
    near, wide, fake_near = real_radii[:, PRECISION_K - 1], real_radii[:, DENSITY_K - 1], fake_radii[:, PRECISION_K - 1]
    recall, nearest = torch.zeros(len(reals), dtype=torch.bool, device=reals.device), torch.full_like(near, torch.inf)
    precision, density = [], []
    for start, distances in _distances(fakes, reals):       # [n, M]
        precision.append((distances <= near).any(1))
        density.append((distances <= wide).sum(1))
        recall |= (distances <= fake_near[start:start + len(distances), None]).any(0)
        nearest = torch.minimum(nearest, distances.amin(0))
    return Manifold(*(part.double().cpu() for part in
                      (torch.cat(precision), recall, torch.cat(density) / DENSITY_K, nearest <= wide)))


def nearest_radii(features: Tensor, k: int) -> Tensor:
    """Return squared distances to the 1st ... k-th nearest other row: [N, d] -> [N, k]."""
    radii = []
    for start, distances in _distances(features, features):
        rows = torch.arange(len(distances), device=features.device)
        distances[rows, start + rows] = torch.inf
        radii.append(distances.topk(k, largest=False).values)
    return torch.cat(radii)


def _distances(x: Tensor, y: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, squared Euclidean distances [n, M]) of blocks of rows of `x`, up to rounding of |x|^2."""
    rows = max(ENTRIES // len(y), 1)
    lengths = y.square().sum(1)
    with Progress('neighbours', len(x), 'pictures') as progress:
        for start in range(0, len(x), rows):
            block = x[start:start + rows]
            yield start, torch.addmm(lengths, block, y.T, alpha=-2).add_(block.square().sum(1, keepdim=True)).clamp_(min=0)
            progress.add(len(block))
