"""Mean and covariance of features are computed in float64, one block of rows at a time."""

import torch
from torch import Tensor

ROWS = 4096   # rows of a block: 64 MB in float64 at 2048 features


def mean_and_covariance(features: Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Features [N, d] -> mean [d] and unbiased covariance [d, d], float64.

    counts [N] (int64): how often each row counts, in a bootstrap resample; None: once.
    """
    shift = features[0].double()   # it is near the mean, so that no digits are lost to a large offset
    total, scatter = torch.zeros_like(shift), shift.new_zeros(len(shift), len(shift))
    for start in range(0, len(features), ROWS):
        block = features[start:start + ROWS].double() - shift
        if counts is None:
            total += block.sum(0)
            scatter.addmm_(block.T, block)
        else:
            often = counts[start:start + ROWS]
            block, often = block[often > 0], often[often > 0].double()[:, None]
            total += (block * often).sum(0)
            scatter.addmm_((block * often).T, block)
    n = len(features) if counts is None else int(counts.sum())
    offset = total / n
    return shift + offset, (scatter - n * offset.outer(offset)) / (n - 1)
