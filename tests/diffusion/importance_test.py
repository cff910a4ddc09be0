"""Times by the size of the losses: the best density, and a mean that does not know of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax.diffusion.importance import UNIFORM, History, Importance

LOW, HIGH = 0.1, 0.9


def loss_of(t, noise):
    """Falls by three orders of magnitude, and is random besides."""
    return jnp.exp(-8.0 * (t - LOW)) * (1.0 + 0.5 * noise)


def second_moments(bins):
    t = np.linspace(LOW, HIGH, bins * 1000 + 1).reshape(-1)[:-1].reshape(bins, 1000)
    return np.exp(-16.0 * (t - LOW)).mean(axis=1) * (1.0 + 0.25)


def test_the_density_becomes_that_of_the_root_of_the_second_moments():
    times = Importance(LOW, HIGH, bins=10, remembered=2_000)

    def step(history, key):
        keys = jax.random.split(key, 256)
        p = times.chances(history)
        t = times.draw(p, keys)
        noise = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 1)))(keys)
        return times.updated(history, times.observed(t, loss_of(t, noise)), 256), p

    keys = jax.random.split(jax.random.key(0), 3_000)
    history, ps = jax.jit(lambda: jax.lax.scan(step, times.start(), keys))()
    roots = np.sqrt(second_moments(10))
    expected = (1 - UNIFORM) * roots / roots.sum() + UNIFORM / 10
    np.testing.assert_allclose(ps[-1], expected, rtol=0.1)
    np.testing.assert_allclose(ps[0], 0.1, rtol=1e-6)
    # Even until the last bin has its count, at about 2,000 x 10 / 256 steps.
    warm = np.abs(np.asarray(ps) - 0.1).max(axis=1) > 1e-3
    assert 75 < np.flatnonzero(warm)[0] < 95 and warm[95:].all()
    np.testing.assert_allclose(history.counts, 2_000)


@pytest.mark.parametrize("bins", [7, 100])
def test_weighted_means_are_means_over_uniform_times(bins):
    times = Importance(LOW, HIGH, bins, remembered=1)
    history = History(jnp.asarray(second_moments(bins), jnp.float32), jnp.ones(bins))
    p = times.chances(history)
    count = 40_000
    t = jax.jit(times.draw)(p, jax.random.split(jax.random.key(1), count))
    drawn = np.bincount(np.floor((np.asarray(t) - LOW) / (HIGH - LOW) * bins).astype(int))
    assert drawn[0] / count == pytest.approx(float(p[0]), rel=0.05)
    ratio = np.asarray(times.ratio(p, t), np.float64)
    loss = np.asarray(loss_of(t, 0.0), np.float64)
    exact = -np.expm1(-8 * (HIGH - LOW)) / (8 * (HIGH - LOW))
    for values, mean in ((ratio, 1.0), (ratio * loss, exact), (ratio * np.asarray(t), 0.5)):
        assert abs(values.mean() - mean) < 4 * values.std() / count**0.5
    # What it is for: the weighted loss is nearly the same everywhere.
    uniform = np.exp(-8 * (np.random.default_rng(0).uniform(LOW, HIGH, count) - LOW))
    assert (ratio * loss).std() < 0.3 * uniform.std()


def test_a_history_is_the_mean_of_the_first_examples_and_then_forgets():
    times = Importance(0.0, 1.0, bins=2, remembered=4)
    history = times.start()

    def after(history, t, losses):
        seen = times.observed(jnp.asarray(t), jnp.asarray(losses))
        return times.updated(history, seen, len(t))

    history = after(history, [0.1, 0.2, 0.7], [1.0, 3.0, 2.0])
    np.testing.assert_allclose(history.squares, [5.0, 4.0])
    np.testing.assert_allclose(history.counts, [2.0, 1.0])
    history = after(history, [0.3], [2.0])  # the other bin is as it was
    np.testing.assert_allclose(history.squares, [14 / 3, 4.0], rtol=1e-6)
    np.testing.assert_allclose(times.chances(history), 0.5)  # one of them has too few
    history = after(history, [0.6] * 3 + [0.1], [2.0, 2.0, 2.0, 0.0])
    np.testing.assert_allclose(history.squares, [14 / 4, 4.0], rtol=1e-6)
    roots = np.sqrt([14 / 4, 4.0])
    expected = (1 - UNIFORM) * roots / roots.sum() + UNIFORM / 2
    np.testing.assert_allclose(times.chances(history), expected, rtol=1e-5)
    history = after(history, [0.5], [4.0])  # now a fourth of the mean is new
    np.testing.assert_allclose(history.squares[1], 0.75 * 4 + 0.25 * 16, rtol=1e-6)
    history = after(history, [0.9] * 8, [1.0] * 8)  # more than are remembered
    np.testing.assert_allclose(history.squares[1], 1.0, rtol=1e-6)


def test_losses_of_zero_keep_the_times_even():
    times = Importance(0.0, 1.0, bins=3, remembered=1)
    np.testing.assert_allclose(times.chances(History(jnp.zeros(3), jnp.ones(3))), 1 / 3)
