"""Bootstrap resamples tell how far a score would move with other pictures. Efron & Tibshirani 1993."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

FRECHET_TIMES, SCORE_TIMES, KERNEL_TIMES, MEAN_TIMES = 20, 50, 200, 1000   # numbers of resamples: fewer if each takes long
NORMAL_95, QUANTILES_95 = 1.96, (0.025, 0.975)
ABOUT = ('95%, from bootstrap resamples of fakes and reals: value +- 1.96 standard deviations over 20 for fid and intra_fid, '
         '50 for is, 200 for kid, within blocks of at most 4000; for the means, precision ... coverage and ppl, the quantiles '
         'of 1000, where the balls stay')


def resample(count: int, times: int, *key: int) -> Iterator[Tensor]:
    """Yield `times` resamples of `count` pictures, as how often each picture is drawn: int64 [count]. `key` is the seed."""
    rng = np.random.RandomState(np.array(key))
    for _ in range(times):
        yield torch.from_numpy(np.bincount(rng.randint(count, size=count), minlength=count))


def interval(value: float, replicates: np.ndarray) -> tuple[float, float]:
    """Return the 95% interval around the value: all replicates [times] of a biased distance such as FID lie on one side of it."""
    half = NORMAL_95 * float(np.std(replicates, ddof=1))
    return value - half, value + half


def mean_interval(contributions: Tensor, seed: int) -> tuple[float, tuple[float, float]]:
    """Return the mean of what each picture contributes [N], float64, and its 95% interval.

    Quantiles are the ends of the interval, as they never leave the range of the contributions.
    """
    values, count, rng = contributions.numpy(), len(contributions), np.random.RandomState(np.array([seed]))
    low, high = np.quantile([values[rng.randint(count, size=count)].mean() for _ in range(MEAN_TIMES)], QUANTILES_95)
    return float(values.mean()), (float(low), float(high))
