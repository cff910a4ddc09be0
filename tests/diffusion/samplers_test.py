import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax.diffusion import grids, guidance, noise, schedules, times
from nrdm_jax.diffusion.predictions import to_x0_eps
from nrdm_jax.diffusion.samplers.table import SAMPLERS

MEAN, STD = 0.5, 0.7


def gaussian(path):
    """The exact estimates of x0 and eps for data N(MEAN, STD^2)."""

    def predict(x, t):
        a, s = (schedules.broadcast(f(t), x) for f in (path.alpha, path.sigma))
        total = a**2 * STD**2 + s**2
        x0 = MEAN + a * STD**2 / total * (x - a * MEAN)
        return x0, s / total * (x - a * MEAN)

    return predict


def exact_flow(path, x, t):
    """The probability-flow ODE of a Gaussian keeps its quantiles: x(0) = m + s0 (x - a m) / s_t."""
    t = jnp.float32(t)
    total = jnp.sqrt(path.alpha(t) ** 2 * STD**2 + path.sigma(t) ** 2)
    return MEAN + STD * (x - path.alpha(t) * MEAN) / total


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("ddim", 1), ("heun", 2)])
@pytest.mark.parametrize("name", ["rectified_flow", "cosine"])
def test_convergence_order_on_a_gaussian(sampler, order, name):
    path = schedules.make_path(name)
    x = jax.random.normal(jax.random.key(0), (64, 3))
    errors = []
    for steps in (16, 32):
        out = SAMPLERS[sampler](gaussian(path), path, x, grids.uniform_times(path, steps))
        errors.append(float(jnp.max(jnp.abs(out - exact_flow(path, x, path.t_max)))))
    measured = np.log2(errors[0] / errors[1])
    assert order - 0.35 < measured < order + 0.6, errors


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", schedules.PATHS)
def test_samples_have_the_data_s_mean_and_std(sampler, name):
    path = schedules.make_path(name)
    x = path.sigma(jnp.float32(path.t_max)) * jax.random.normal(jax.random.key(1), (20_000, 1))
    out = SAMPLERS[sampler](gaussian(path), path, x, grids.uniform_times(path, 100))
    assert abs(float(out.mean()) - MEAN) < 0.03
    assert abs(float(out.std()) - STD) < 0.03


def test_one_step_of_ddim_is_exact_for_a_point():
    path = schedules.cosine()
    x0, eps = jnp.full((2, 3), 0.4), jax.random.normal(jax.random.key(0), (2, 3))
    start = schedules.add_noise(path, x0, eps, jnp.full((2,), path.t_max))

    def predict(x, t):
        return x0, (x - path.alpha(t)[:, None] * x0) / path.sigma(t)[:, None]

    out = SAMPLERS["ddim"](predict, path, start, grids.uniform_times(path, 1))
    np.testing.assert_allclose(out, x0, atol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_nothing_is_evaluated_at_the_data(sampler):
    path = schedules.rectified_flow()

    def predict(x, t):  # an x0 network means no finite eps at t = 0
        return to_x0_eps(path, "x0", 0.5 * x, x, t)

    out = SAMPLERS[sampler](predict, path, jnp.ones((2, 3)), grids.uniform_times(path, 4))
    assert bool(jnp.all(jnp.isfinite(out)))


def test_guidance_is_the_formula_and_scale_one_is_free():
    def denoise(x, t, label):
        return x * (1.0 + label.astype(jnp.float32))[:, None] + t[:, None]

    x, t, label = jnp.ones((3, 2)), jnp.arange(3.0), jnp.asarray([1, 2, 3])
    assert guidance.classifier_free(denoise, 9, 1.0) is denoise
    expected = denoise(x, t, label * 0 + 9) + 2.5 * (
        denoise(x, t, label) - denoise(x, t, label * 0 + 9)
    )
    np.testing.assert_allclose(guidance.classifier_free(denoise, 9, 2.5)(x, t, label), expected)


def test_noise_and_times_do_not_depend_on_the_batch():
    many = noise.noise_of_seeds(jnp.arange(8), (4, 4, 3))
    for i in (0, 5):
        np.testing.assert_array_equal(many[i], noise.noise_of_seeds(jnp.asarray([i]), (4, 4, 3))[0])
    keys = jax.random.split(jax.random.key(0), 8)
    for draw in (times.uniform(0.1, 0.9), times.logit_normal(0.0, 1.0, 0.3, 1.2)):
        np.testing.assert_array_equal(draw(keys)[3:4], draw(keys[3:4]))


def test_quantiles_of_the_times():
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = np.asarray(times.logit_normal(0.0, 1.0, 0.5, 2.0)(keys))
    logit = np.log(drawn / (1 - drawn))
    np.testing.assert_allclose(
        np.quantile(logit, [0.1587, 0.5, 0.8413]), [-1.5, 0.5, 2.5], atol=0.06
    )
    flat = np.asarray(times.uniform(0.2, 0.6)(keys))
    np.testing.assert_allclose(np.quantile(flat, [0, 0.5, 1]), [0.2, 0.4, 0.6], atol=0.01)
