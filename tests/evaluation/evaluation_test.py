import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax.evaluation import linear_denoiser
from nrdm_jax.evaluation.heldout import heldout_losses
from nrdm_jax.evaluation.nearest import nearest


def gaussian_data(count, dimensions=6):
    draw = np.random.default_rng(0)
    mix = draw.standard_normal((dimensions, dimensions))
    return draw.standard_normal((count, dimensions)) @ mix.T + 2.0, mix @ mix.T


def test_linear_denoiser_is_the_posterior_mean_of_a_gaussian():
    x, _ = gaussian_data(500)
    mean, covariance = x.mean(0), np.cov(x.T, bias=True)
    alpha, sigma = 0.8, 0.6
    x_t = np.random.default_rng(1).standard_normal((4, 6))
    gain = alpha * covariance @ np.linalg.inv(alpha**2 * covariance + sigma**2 * np.eye(6))
    expected = mean + (x_t - alpha * mean) @ gain.T
    fitted = linear_denoiser.fit([part.reshape(-1, 2, 3, 1) for part in (x[:120], x[120:])], 500)
    x0, eps = linear_denoiser.estimate_x0(
        fitted, jnp.float32(x_t.reshape(4, 2, 3, 1)), alpha, sigma
    )
    np.testing.assert_allclose(x0.reshape(4, 6), expected, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(
        alpha * x0 + sigma * eps, x_t.reshape(4, 2, 3, 1), rtol=1e-4, atol=1e-4
    )


def test_fewer_examples_than_dimensions_give_the_same():
    x = np.random.default_rng(0).standard_normal((5, 12))
    fitted = linear_denoiser.fit([x[:2], x[2:]], 5)  # by the Gram matrix
    covariance = np.cov(x.T, bias=True)
    rebuilt = (fitted.basis * fitted.variances[None, :]) @ fitted.basis.T
    np.testing.assert_allclose(rebuilt, covariance, atol=1e-5)


def test_directions_that_no_example_shows_vary_as_each_does_outside_the_others():
    x = np.random.default_rng(0).standard_normal((6, 15)) * np.linspace(0.5, 2, 15)
    found = []
    for i in range(6):
        others = np.delete(x, i, axis=0)
        away, directions = x[i] - others[0], others[1:] - others[0]
        weights, *_ = np.linalg.lstsq(directions.T, away, rcond=None)
        found.append(np.sum((away - weights @ directions) ** 2) / (15 - 4))
    assert float(linear_denoiser.fit([x], 6).outside) == pytest.approx(np.mean(found), rel=1e-5)


def test_of_data_that_vary_alike_the_unseen_variance_is_theirs():
    x = 0.3 * np.random.default_rng(0).standard_normal((60, 3000)) + 1
    # and a 59th of it, of the mean of the 59 others, from which it is measured
    expected = 0.09 * (1 + 1 / 59)
    assert float(linear_denoiser.fit([x], 60).outside) == pytest.approx(expected, rel=0.01)


def test_a_clip_has_its_linear_denoiser_through_the_gram_matrix():
    """C = X^T X / n of the centred examples, and o outside their span: by the push-through identity
    X^T X (a^2 X^T X / n + s^2 I)^-1 = X^T (a^2 X X^T / n + s^2 I)^-1 X, n by n and exact."""
    draw = np.random.default_rng(0)
    shape, count, alpha, sigma = (4, 16, 16, 3), 60, 0.8, 0.6
    x = draw.standard_normal((count, *shape)) * draw.uniform(0, 2, shape) + 0.3
    x_t = draw.standard_normal((2, *shape))
    fitted = linear_denoiser.fit([x[:7], x[7:]], count)
    x0, _ = linear_denoiser.estimate_x0(fitted, jnp.float32(x_t), alpha, sigma)
    mean, flat = x.mean(0).ravel(), (x - x.mean(0)).reshape(count, -1)
    residual = x_t.reshape(2, -1) - alpha * mean
    small = alpha**2 * flat @ flat.T / count + sigma**2 * np.eye(count)
    inside = (np.linalg.solve(small, flat @ residual.T) / count).T @ flat
    span, _ = np.linalg.qr(flat[1:].T)
    beyond, outside = residual - (residual @ span) @ span.T, float(fitted.outside)
    gain = outside / (alpha**2 * outside + sigma**2)
    expected = mean + alpha * (inside + gain * beyond)
    np.testing.assert_allclose(x0.reshape(2, -1), expected, atol=1e-4)


@pytest.mark.parametrize(("count", "dimensions"), [(300, 12_000), (1100, 1000)])
def test_a_fit_takes_the_memory_that_is_said_and_no_more(count, dimensions):
    x = np.random.default_rng(0).standard_normal((count, dimensions)).astype(np.float32)
    tracemalloc.start()
    linear_denoiser.fit(np.array_split(x, 20), count)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    said = linear_denoiser.bytes_of_fit(count, dimensions)
    assert 0.5 * said < peak < 1.15 * said


def test_no_other_linear_denoiser_is_better():
    x, _ = gaussian_data(20_000)
    x0 = jnp.float32(x)
    eps = jax.random.normal(jax.random.key(0), x0.shape)
    x_t = 0.6 * x0 + 0.8 * eps
    fitted = linear_denoiser.fit([x], len(x))

    def error(denoiser):
        return float(jnp.mean((linear_denoiser.estimate_x0(denoiser, x_t, 0.6, 0.8)[0] - x0) ** 2))

    for change in (0.7, 1.4):
        assert error(fitted) < error(fitted._replace(variances=fitted.variances * change))
    assert error(fitted) < error(fitted._replace(mean=fitted.mean + 0.3))


def test_nearest_finds_copies_and_agrees_with_brute_force():
    draw = np.random.default_rng(0)
    references = draw.uniform(-1, 1, (50, 4, 4, 3)).astype(np.float32)
    queries = np.concatenate([references[[7, 31]], draw.uniform(-1, 1, (5, 4, 4, 3))]).astype(
        np.float32
    )
    distances, indices = nearest(queries, [references[:16], references[16:48], references[48:]])
    np.testing.assert_array_equal(distances[:2], 0.0)
    np.testing.assert_array_equal(indices[:2], [7, 31])
    brute = np.sqrt(np.mean((queries[:, None] - references[None]) ** 2, axis=(2, 3, 4)))
    np.testing.assert_allclose(distances, brute.min(1), rtol=1e-6)
    np.testing.assert_array_equal(indices, brute.argmin(1))


def test_held_out_mean_is_over_exactly_the_unmasked():
    values = np.arange(10.0)

    def sums(params, batch, seeds):
        x, mask = batch["x"], batch["mask"]
        np.testing.assert_array_equal(seeds, np.arange(seeds[0], seeds[0] + 4))
        return np.asarray([np.sum(x[mask]), 2 * np.sum(x[mask])]), np.asarray(
            [0.0, 1.0]
        ) * mask.sum()

    def batches():
        for start in (0, 4, 8):
            rows = np.minimum(np.arange(start, start + 4), 9)
            yield {"x": values[rows], "label": rows, "mask": np.arange(start, start + 4) < 10}

    result = heldout_losses(sums, None, batches, (-1.0, 2.0))
    assert result["heldout_examples"] == 10
    np.testing.assert_allclose(result["heldout_loss"], 1.5 * 4.5)
    np.testing.assert_allclose(result["heldout_loss/log_snr=2"], 9.0)
    np.testing.assert_allclose(result["heldout_x0_error"], 0.5)
