"""The likelihood of what has a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax.diffusion import likelihood, schedules

MEAN, STD = 0.5, 0.7
SHAPE = (2, 2, 1)


def gaussian(path):
    def predict(x, t):
        a, s = (schedules.broadcast(f(t), x) for f in (path.alpha, path.sigma))
        gain = (x - a * MEAN) / (a**2 * STD**2 + s**2)
        return MEAN + a * STD**2 * gain, s * gain

    return predict


def data_and_truth():
    x = MEAN + STD * jax.random.normal(jax.random.key(0), (32, *SHAPE))
    nats = 0.5 * (x - MEAN) ** 2 / STD**2 + 0.5 * np.log(2 * np.pi * STD**2)
    return x, np.asarray(nats.mean(axis=(1, 2, 3)) / np.log(2))


@pytest.mark.parametrize("name", ["rectified_flow", "cosine"])
def test_of_a_gaussian_to_a_thousandth_of_a_bit(name):
    path = schedules.make_path(name)
    x, truth = data_and_truth()
    found = jax.jit(lambda x: likelihood.bits_per_dim(gaussian(path), path, x))(x)
    np.testing.assert_allclose(found, truth, atol=1e-3)


def test_probes_give_the_same_on_the_mean():
    """Of a Gaussian that is not round the trace needs its probes; each sign is exact on a diagonal
    Jacobian, and this one is diagonal: the same to rounding."""
    path = schedules.rectified_flow()
    x, truth = data_and_truth()
    probes = jax.random.rademacher(jax.random.key(1), (2, *x.shape), jnp.float32)
    found = jax.jit(
        lambda x: likelihood.bits_per_dim(gaussian(path), path, x, likelihood.hutchinson(probes))
    )(x)
    np.testing.assert_allclose(found, truth, atol=1e-3)


def test_hutchinson_is_the_trace_on_average():
    matrix = jax.random.normal(jax.random.key(0), (6, 6))
    x = jnp.ones((1, 6))
    probes = jax.random.rademacher(jax.random.key(1), (4000, 1, 6), jnp.float32)
    value, found = likelihood.hutchinson(probes)(lambda x: x @ matrix, x)
    np.testing.assert_allclose(value, x @ matrix, rtol=1e-5)
    np.testing.assert_allclose(found, jnp.trace(matrix), atol=0.4)
    np.testing.assert_allclose(likelihood.exact(lambda x: x @ matrix, x)[1], jnp.trace(matrix),
                               rtol=1e-5)  # fmt: skip


def test_of_integers_it_counts_their_width():
    path = schedules.rectified_flow()
    x, truth = data_and_truth()
    found = likelihood.bits_per_dim(gaussian(path), path, x, pixel=2 / 255)
    np.testing.assert_allclose(found, truth + np.log2(255 / 2), atol=1e-3)
