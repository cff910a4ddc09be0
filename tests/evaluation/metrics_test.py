"""Metrics of features against closed forms, and against statements of their own."""

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial

from nrdm_jax.evaluation import frechet, inception_score, kernel_distance, precision_recall


def moments(*batches):
    found = frechet.Moments()
    for batch in batches:
        found.add(batch)
    return found


def test_moments_are_numpy_s_whatever_the_batches():
    x = np.random.default_rng(0).normal(1000.0, 1.0, (300, 5)).astype(np.float32)
    whole, parts = moments(x), moments(x[:7], x[7:8], x[8:])
    for found in (whole, parts):
        assert found.count == 300
        np.testing.assert_allclose(found.mean, x.astype(np.float64).mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(
            found.covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-9
        )


def test_distance_of_gaussians_that_commute_has_a_closed_form():
    """|m - m'|^2 + |C^(1/2) - C'^(1/2)|_F^2 of covariances with common axes."""
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(2, 400, 6))
    q, _ = np.linalg.qr(draw.normal(size=(6, 6)))
    white = [(s - s.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(s.T))).T for s in (x, y)]
    scales, means = draw.uniform(0.5, 2, (2, 6)), draw.normal(size=(2, 6))
    sets = [(w * s) @ q.T + m for w, s, m in zip(white, scales, means, strict=True)]
    expected = np.sum((means[0] - means[1]) ** 2) + np.sum((scales[0] - scales[1]) ** 2)
    found = frechet.distance(*(moments(s) for s in sets))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_distance_is_that_of_the_matrix_root():
    draw = np.random.default_rng(1)
    a, b = draw.normal(size=(200, 8)), draw.normal(size=(150, 8)) @ draw.normal(size=(8, 8))
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    np.testing.assert_allclose(frechet.distance(moments(a), moments(b)), expected, rtol=1e-8)
    assert abs(frechet.distance(moments(a), moments(a))) < 1e-9


def test_distance_of_fewer_examples_than_features_is_real():
    a, b = np.random.default_rng(2).normal(size=(2, 10, 64))
    found = frechet.distance(moments(a), moments(b))
    assert np.isfinite(found) and found > 0


def test_too_few_and_bad_features_say_so():
    with pytest.raises(ValueError, match="at least 2 examples, got 1"):
        frechet.distance(moments(np.ones((1, 3))), moments(np.ones((5, 3))))
    with pytest.raises(FloatingPointError):
        moments(np.array([[np.nan]]))


def test_kernel_distance_is_the_double_sum_and_unbiased():
    a, b = np.random.default_rng(0).normal(size=(2, 12, 4))

    def k(x, y):
        return (x @ y / 4 + 1) ** 3

    n = 12
    own = [sum(k(s[i], s[j]) for i in range(n) for j in range(n) if i != j) for s in (a, b)]
    cross = sum(k(x, y) for x in a for y in b)
    expected = sum(own) / (n * (n - 1)) - 2 * cross / n**2
    np.testing.assert_allclose(kernel_distance.kernel_distance(a, b)[0], expected, rtol=1e-10)
    draw = np.random.default_rng(1)
    values = [kernel_distance.kernel_distance(*draw.normal(size=(2, 20, 4)))[0] for _ in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 20  # zero on average for equal laws
    mean, std = kernel_distance.kernel_distance(draw.normal(size=(60, 4)), b + 2, size=12)
    assert mean > 1 and std > 0


def test_inception_score_of_certain_and_of_blind_classifiers():
    certain = 1e3 * np.tile(np.eye(5), (20, 1))
    np.testing.assert_allclose(inception_score.inception_score(certain, 10), (5.0, 0.0), atol=1e-9)
    blind = np.zeros((100, 5))
    np.testing.assert_allclose(inception_score.inception_score(blind)[0], 1.0)
    logits = np.random.default_rng(0).normal(size=(50, 4))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    entropy = -np.sum(p * np.log(p), axis=1).mean()
    marginal = p.mean(0)
    expected = np.exp(-np.sum(marginal * np.log(marginal)) - entropy)
    np.testing.assert_allclose(inception_score.inception_score(logits, 1)[0], expected, rtol=1e-12)


def test_precision_and_recall_by_a_tree():
    draw = np.random.default_rng(0)
    samples, data = draw.normal(size=(90, 3)) * 0.5, draw.normal(size=(70, 3))

    def covered(queries, centres):
        radii = scipy.spatial.cKDTree(centres).query(centres, k=4)[0][:, 3]
        return np.mean([
            np.any(np.linalg.norm(centres - q, axis=1) <= radii) for q in queries
        ])  # fmt: skip

    found = precision_recall.precision_recall(samples, data, block=16)
    np.testing.assert_allclose(found, (covered(samples, data), covered(data, samples)))
    assert found[0] > found[1]  # narrow samples: right, and not all of it
    assert precision_recall.precision_recall(data, data) == (1.0, 1.0)
    assert precision_recall.precision_recall(data, data + 100) == (0.0, 0.0)
    with pytest.raises(ValueError, match="need more examples than 3 and 70"):
        precision_recall.precision_recall(samples[:3], data)
