"""KID is the kernel distance of Binkowski et al. 2018, "Demystifying MMD GANs", section 4.

It is the unbiased estimate of the squared MMD under the kernel (x.y / d + 1)^3: its mean is 0 if the distributions are equal.
"""

import numpy as np
import torch
from torch import Tensor

SUBSETS, SUBSET_SIZE = 100, 1000   # as published
MOST_IN_BLOCK = 4 * SUBSET_SIZE       # reals, or fakes, in a block of the bootstrap


def kernel_distance(fakes: Tensor, reals: Tensor, seed: int, subsets: int = SUBSETS, size: int = SUBSET_SIZE) -> float:
    """Estimate the distance of fakes [N, d] and reals [M, d] as the mean over random subsets of `size`, or of all if fewer."""
    size = min(size, len(fakes), len(reals))
    if size == len(fakes) == len(reals):
        subsets = 1
    rng = np.random.RandomState(seed)   # numpy keeps the numbers of this generator the same in all versions
    total = 0.0
    for _ in range(subsets):
        x, y = (features[torch.from_numpy(rng.choice(len(features), size, replace=False)).to(features.device)]
                for features in (fakes, reals))
        once = x.new_ones(1, size, dtype=torch.float64)
        total += float(_squared_mmd(x, y, once, once))
    return total / subsets


def kernel_replicates(fakes: Tensor, reals: Tensor, times: int, seed: int) -> np.ndarray:
    """Return bootstrap replicates [times] of fakes [N, d] and reals [M, d]: pictures are drawn again within disjoint blocks, and
    the distances of blocks are averaged.

    Blocks have at most 4000 pictures, so that the cost grows with the number of pictures and not with its square.
    """
    rng = np.random.RandomState(seed)
    blocks = max(min(len(fakes), len(reals)) // SUBSET_SIZE, 1)
    parts = [[order[block::blocks][:MOST_IN_BLOCK] for block in range(blocks)]
             for order in (rng.permutation(len(fakes)), rng.permutation(len(reals)))]
    total = np.zeros(times)
    for own_fakes, own_reals in zip(*parts, strict=True):
        x, y = fakes[torch.from_numpy(own_fakes).to(fakes.device)], reals[torch.from_numpy(own_reals).to(reals.device)]
        counts = [torch.from_numpy(rng.multinomial(len(own), np.full(len(own), 1 / len(own)), times)).double().to(own.device)
                  for own in (x, y)]
        total += _squared_mmd(x, y, *counts).cpu().numpy()
    return total / blocks


def _squared_mmd(x: Tensor, y: Tensor, x_counts: Tensor, y_counts: Tensor) -> Tensor:
    """Estimate the squared MMD [B] for each row of counts [B, n] and [B, m], which say how often each picture counts. No picture
    is compared with itself."""
    cross = ((x_counts @ _kernel(x, y)) * y_counts).sum(1) / (x_counts.sum(1) * y_counts.sum(1))
    return _mean_within(x, x_counts) + _mean_within(y, y_counts) - 2 * cross


def _mean_within(x: Tensor, counts: Tensor) -> Tensor:
    kernel = _kernel(x, x)
    kernel.fill_diagonal_(0)
    return ((counts @ kernel) * counts).sum(1) / (counts.sum(1).square() - counts.square().sum(1))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """[n, d] and [m, d] -> [n, m] float64. Products have the features' precision, which is enough for a mean."""
    return (x @ y.T).double().div_(x.shape[1]).add_(1).pow_(3)
