"""The distances: against known answers, and against clean-fid and torch-fidelity on the same features."""

import warnings

import numpy as np
import pytest
import torch
from peers_for_tests import clean_fid, torch_fidelity

from imago.trainer.metrics.bootstrap import interval, mean_interval, resample
from imago.trainer.metrics.frechet import frechet_distance, frechet_from_moments, intra_class_distance
from imago.trainer.metrics.inception_score import inception_score, score_replicates
from imago.trainer.metrics.kid import kernel_distance, kernel_replicates
from imago.trainer.metrics.manifold import compare_manifolds
from imago.trainer.metrics.moments import mean_and_covariance


def features(count, width=24, seed=0, shift=0.0, scale=1.0):
    """Correlated, positive and far from 0, as features are."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(width, width)) / np.sqrt(width)
    return torch.from_numpy((np.abs(rng.normal(size=(count, width)) * scale @ mixing) + 3 + shift).astype(np.float32))


def rotation(width, seed=0):
    return torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).Q


def test_frechet_distance_of_known_gaussians():
    a, b = torch.arange(1.0, 7, dtype=torch.float64), torch.tensor([4.0, 1, 0.25, 9, 16, 0], dtype=torch.float64)
    mean1, mean2 = torch.zeros(6, dtype=torch.float64), torch.full((6,), 0.5, dtype=torch.float64)
    # commuting covariances: |m1 - m2|^2 + sum (sqrt a - sqrt b)^2
    known = 6 * 0.25 + float((a.sqrt() - b.sqrt()).square().sum())
    assert frechet_from_moments(mean1, a.diag(), mean2, b.diag()) == pytest.approx(known, rel=1e-12)
    Q = rotation(6)
    turned = frechet_from_moments(mean1, Q @ a.diag() @ Q.T, mean2, Q @ b.diag() @ Q.T)
    assert turned == pytest.approx(known, rel=1e-10)
    # two planes that share a line: tr (C1 C2)^(1/2) = 1 for projections onto it
    plane1, plane2 = torch.tensor([1.0, 1, 0]).double().diag(), torch.tensor([0.0, 1, 1]).double().diag()
    zero = torch.zeros(3, dtype=torch.float64)
    assert frechet_from_moments(zero, plane1, zero, plane2) == pytest.approx(2 + 2 - 2, rel=1e-12)
    # covariances that do not commute, 2 x 2: tr sqrt(M) = sqrt(tr M + 2 sqrt(det M))
    C1, C2 = torch.tensor([[2.0, 1], [1, 3]]).double(), torch.tensor([[1.0, -0.5], [-0.5, 2]]).double()
    M = C1 @ C2
    known = float(C1.trace() + C2.trace() - 2 * (M.trace() + 2 * M.det().sqrt()).sqrt())
    assert frechet_from_moments(zero[:2], C1, zero[:2], C2) == pytest.approx(known, rel=1e-12)


@pytest.mark.parametrize('counts', [(60, 200), (15, 20)])
def test_few_rows_and_many_give_the_same_distance(counts):
    x, y = features(counts[0]), features(counts[1], seed=1, shift=0.2)
    of_moments = frechet_from_moments(*mean_and_covariance(x), *mean_and_covariance(y))
    wide = torch.nn.functional.pad(x, (0, 300)), torch.nn.functional.pad(y, (0, 300))   # fewer rows than columns
    assert frechet_distance(*wide) == pytest.approx(of_moments, rel=1e-6)
    assert frechet_distance(x, y) == pytest.approx(of_moments, rel=1e-6)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)


def test_moments_in_blocks_keep_their_digits():
    x = features(9000, 5) + 1000
    mean, covariance = mean_and_covariance(x)
    exact = x.double().numpy()
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-13)
    np.testing.assert_allclose(covariance, np.cov(exact, rowvar=False), rtol=1e-9, atol=1e-12)
    counts = next(resample(len(x), 1, 3))
    repeated = exact.repeat(counts.numpy(), axis=0)
    mean, covariance = mean_and_covariance(x, counts)
    np.testing.assert_allclose(mean, repeated.mean(0), rtol=1e-13)
    np.testing.assert_allclose(covariance, np.cov(repeated, rowvar=False), rtol=1e-9, atol=1e-12)
    few, few_counts = x[:4], torch.tensor([2, 0, 1, 3])
    known = frechet_distance(few.repeat_interleave(few_counts, 0), x)
    assert frechet_distance(few, x, few_counts) == pytest.approx(known, rel=1e-9)


def test_equal_to_clean_fid():
    peer = clean_fid()
    x, y = features(300), features(400, seed=1, shift=0.1)
    ours = [moment.numpy() for one in (x, y) for moment in mean_and_covariance(one)]
    with warnings.catch_warnings(action='ignore'):   # scipy warns of sqrtm(disp=...)
        assert frechet_distance(x, y) == pytest.approx(peer.frechet_distance(*ours), rel=1e-6)
    np.random.seed(5)   # the peer draws from its second set first, hence the order of x and y
    assert kernel_distance(y, x, 5, subsets=20, size=100) == pytest.approx(
        peer.kernel_distance(x.double().numpy(), y.double().numpy(), 20, 100), rel=1e-5)


def test_equal_to_torch_fidelity():
    x, y = features(300), features(400, seed=1, shift=0.1)
    fid = torch_fidelity('metric_fid')
    theirs = fid.fid_statistics_to_metric(*(fid.fid_features_to_statistics(one.double()) for one in (x, y)), False)
    assert frechet_distance(x, y) == pytest.approx(theirs['frechet_inception_distance'], rel=1e-6)
    kid = torch_fidelity('metric_kid').kid_features_to_metric(x.double(), y.double(), kid_subsets=20, kid_subset_size=100,
                                                              rng_seed=5, verbose=False)
    assert kernel_distance(x, y, 5, subsets=20, size=100) == pytest.approx(kid['kernel_inception_distance_mean'], rel=1e-5)
    prc = torch_fidelity('metric_prc').prc_features_to_metric(x, y, prc_neighborhood=3, prc_batch_size=100,
                                                              save_cpu_ram=True, verbose=False)
    ours = compare_manifolds(x, y)
    assert float(ours.precision.mean()) == pytest.approx(prc['precision'], abs=1e-6)
    assert float(ours.recall.mean()) == pytest.approx(prc['recall'], abs=1e-6)
    logits = torch.randn(200, 30, generator=torch.Generator().manual_seed(0)) * 3
    isc = torch_fidelity('metric_isc').isc_features_to_metric(logits, 10, True, 7)
    assert inception_score(logits.double().softmax(1), 7) == pytest.approx(isc['inception_score_mean'], rel=1e-6)


def test_inception_score_at_its_ends():
    certain, even = torch.eye(4).double().repeat(10, 1), torch.full((40, 4), 0.25).double()
    assert inception_score(certain, 0, splits=1) == pytest.approx(4)
    assert inception_score(even, 0) == pytest.approx(1)
    assert score_replicates(even, list(resample(40, 3, 0))) == pytest.approx([1, 1, 1])


def test_kernel_distance_is_unbiased_and_sees_differences():
    same = [kernel_distance(features(64, seed=2 * i), features(64, seed=2 * i + 1), 0) for i in range(40)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(40) and min(same) < 0 < max(same)
    assert kernel_distance(features(64), features(64, seed=1, shift=0.5), 0) > 10 * max(same)


def test_neighbours_of_subset_superset_and_disjoint_sets():
    grid = torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0))
    half = grid[grid[:, 0] < 5]
    same = compare_manifolds(grid, grid)
    assert all(float(getattr(same, name).mean()) == 1 for name in ('precision', 'recall', 'coverage'))
    subset = compare_manifolds(half, grid)            # fakes on half of the reals
    assert float(subset.precision.mean()) == 1 and 0.5 <= float(subset.recall.mean()) < 0.75
    assert 0.5 <= float(subset.coverage.mean()) < 0.75
    superset = compare_manifolds(grid, half)
    assert 0.5 <= float(superset.precision.mean()) < 0.75 and float(superset.recall.mean()) == 1
    apart = compare_manifolds(grid + 100, grid)
    assert all(float(getattr(apart, name).max()) == 0 for name in ('precision', 'recall', 'density', 'coverage'))


def test_neighbours_one_by_one():
    """The expected values come straight from the definitions, over all pairs; there are more rows than a block holds."""
    x, y = features(40, 6), features(70, 6, seed=1, shift=0.1)

    def radius(of, k):
        return torch.cdist(of.double(), of.double()).kthvalue(k + 1, dim=1).values
    pairs = torch.cdist(x.double(), y.double())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('imago.trainer.metrics.manifold.ENTRIES', 300)
        found = compare_manifolds(x, y)
    inside = pairs <= radius(y, 5)
    assert torch.equal(found.precision.bool(), (pairs <= radius(y, 3)).any(1))
    assert torch.equal(found.recall.bool(), (pairs <= radius(x, 3)[:, None]).any(0))
    torch.testing.assert_close(found.density, inside.sum(1) / 5, check_dtype=False)
    assert torch.equal(found.coverage.bool(), inside.any(0))


def test_intra_class_distance_is_the_mean_over_classes():
    x, y = features(60), features(90, seed=1)
    x_labels, y_labels = torch.arange(60) % 3, torch.arange(90) % 3
    apart = [frechet_distance(x[x_labels == c], y[y_labels == c]) for c in range(3)]
    assert intra_class_distance(x, x_labels, y, y_labels) == (pytest.approx(np.mean(apart)), 3)
    x_labels[x_labels == 2] = 0
    assert intra_class_distance(x, x_labels, y, y_labels)[1] == 2
    with pytest.raises(ValueError, match='no class has two reals and two fakes'):
        intra_class_distance(x, x_labels + 5, y, y_labels)


def test_intervals_have_the_width_of_repeated_experiments():
    """The spread of scores over fresh samples is compared with the half width that bootstrap estimates from one sample."""
    pairs = [(features(100, 8, seed=i), features(100, 8, seed=1000 + i, shift=0.3)) for i in range(30)]

    def spread(score, half_width):
        return np.mean([half_width(*pair) for pair in pairs[:5]]) / 1.96 / np.std([score(*pair) for pair in pairs])

    def fid_width(x, y):
        replicates = [frechet_distance(x, y, *c) for c in zip(resample(100, 20, 0, 0), resample(100, 20, 0, 1), strict=True)]
        return interval(0, np.array(replicates))[1]

    def kid_width(x, y):
        return interval(0, kernel_replicates(x, y, 100, 0))[1]
    assert 0.5 < spread(frechet_distance, fid_width) < 2
    assert 0.5 < spread(lambda x, y: kernel_distance(x, y, 0), kid_width) < 2
    low, high = mean_interval(torch.randn(400, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), 0)[1]
    assert (high - low) / 2 / 1.96 == pytest.approx(1 / 20, rel=0.2)


@pytest.mark.parametrize('share, count', [(0.03, 150), (0.3, 60), (0.98, 150)])
def test_a_share_stays_within_0_and_1_and_95_of_100_intervals_hold_it(share, count):
    rng, held = np.random.RandomState(0), 0
    for seed in range(150):
        contributions = torch.from_numpy((rng.rand(count) < share).astype(float))
        value, (low, high) = mean_interval(contributions, seed)
        assert 0 <= low <= value <= high <= 1
        held += low <= share <= high
    assert 0.9 <= held / 150 <= 0.99
