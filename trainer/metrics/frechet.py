"""FID is the Frechet distance of Gaussians with the features' moments. Heusel et al. 2017, "GANs Trained by a TTUR"."""

from collections.abc import Iterator

import torch
from torch import Tensor

from imago.trainer.metrics.moments import mean_and_covariance

LEAST_IN_CLASS = 2   # reals and fakes; fewer have no covariance


def frechet_distance(fakes: Tensor, reals: Tensor, fake_counts: Tensor | None = None,
                     real_counts: Tensor | None = None) -> float:
    """Return |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of features [N, d] and [M, d], by the cheaper of two exact forms.

    counts [N], [M] (int64): how often each row counts, in a bootstrap resample.
    """
    if max(len(fakes), len(reals)) <= fakes.shape[1]:
        return _from_few(fakes, reals, fake_counts, real_counts)
    return frechet_from_moments(*mean_and_covariance(fakes, fake_counts), *mean_and_covariance(reals, real_counts))


def frechet_from_moments(mean1: Tensor, covariance1: Tensor, mean2: Tensor, covariance2: Tensor) -> float:
    """Return the same from means [d] and covariances [d, d], float64, which may be singular.

    With C1 = R R', the eigenvalues of C1 C2 are those of R' C2 R. It is symmetric, so they are real, and no matrix root is
    needed.
    """
    values, vectors = torch.linalg.eigh(covariance1)
    root = vectors * values.clamp(min=0).sqrt()
    shared = torch.linalg.eigvalsh(root.T @ covariance2 @ root).clamp(min=0).sqrt().sum()
    return float((mean1 - mean2).square().sum() + covariance1.trace() + covariance2.trace() - 2 * shared)


def intra_class_distance(fakes: Tensor, fake_labels: Tensor, reals: Tensor, real_labels: Tensor,
                         fake_counts: Tensor | None = None, real_counts: Tensor | None = None) -> tuple[float, int]:
    """Return the mean over classes of the distance within a class, and the number of classes. Miyato & Koyama 2018, section 5.1.

    fakes [N, d] with labels [N], reals [M, d] with labels [M]; counts are those of `frechet_distance`.
    Classes with fewer than two reals or fakes are left out. Raises ValueError if that leaves none.
    """
    distances = []
    for own_fakes, own_reals in _members(fake_labels, real_labels):
        counts = [None if counts is None else counts[own] for counts, own in
                  ((fake_counts, own_fakes), (real_counts, own_reals))]
        if all(c is None or int(c.sum()) >= LEAST_IN_CLASS for c in counts):
            distances.append(frechet_distance(fakes[own_fakes], reals[own_reals], *counts))
    if not distances:
        raise ValueError('intra_fid: no class has two reals and two fakes; evaluate more images')
    return sum(distances) / len(distances), len(distances)


def _members(fake_labels: Tensor, real_labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for label in real_labels.unique():
        members = [(labels == label).nonzero().squeeze(1) for labels in (fake_labels, real_labels)]
        if min(map(len, members)) >= LEAST_IN_CLASS:
            yield members[0], members[1]


def _from_few(x: Tensor, y: Tensor, x_counts: Tensor | None, y_counts: Tensor | None) -> float:
    """Serve fewer rows than features: if C1 = X'X and C2 = Y'Y, tr (C1 C2)^(1/2) is the sum of the singular values of XY'."""
    (x_mean, x_root), (y_mean, y_root) = _mean_and_root(x, x_counts), _mean_and_root(y, y_counts)
    shared = torch.linalg.svdvals(x_root @ y_root.T).sum()
    return float((x_mean - y_mean).square().sum() + x_root.square().sum() + y_root.square().sum() - 2 * shared)


def _mean_and_root(features: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the mean [d], and X [n, d] so that X'X is the covariance."""
    features = features.double()
    counts = features.new_ones(len(features)) if counts is None else counts.double()
    n = counts.sum()
    mean = (features * counts[:, None]).sum(0) / n
    return mean, (features - mean) * (counts / (n - 1)).sqrt()[:, None]
