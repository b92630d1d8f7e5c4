"""The Inception Score is exp of the mean KL divergence of p(class | picture) from p(class). Salimans et al. 2016, section 4."""

import numpy as np
import torch
from torch import Tensor

SPLITS = 10   # as published


def inception_score(probabilities: Tensor, seed: int, splits: int = SPLITS) -> float:
    """Return the mean score of `splits` equal random parts of class probabilities [N, C], float64; N is at least `splits`."""
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(probabilities)))
    return float(torch.stack([_score(part) for part in probabilities[order].tensor_split(splits)]).mean())


def score_replicates(probabilities: Tensor, resamples: list[Tensor]) -> np.ndarray:
    """Return bootstrap replicates [times] of the score without splits; probabilities [N, C], and counts [N] in `resamples`."""
    return np.array([float(_score(probabilities, counts)) for counts in resamples])


def _score(probabilities: Tensor, counts: Tensor | None = None) -> Tensor:
    weights = torch.ones(len(probabilities)) if counts is None else counts
    weights = (weights.double() / weights.sum()).to(probabilities)[:, None]
    marginal = (probabilities * weights).sum(0)
    # xlogy makes a class of probability 0 add nothing.
    divergence = torch.xlogy(probabilities, probabilities) - torch.xlogy(probabilities, marginal)
    return (divergence.sum(1, keepdim=True) * weights).sum().exp()
