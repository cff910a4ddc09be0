"""The learned variance is Nichol & Dhariwal's, its bound DiT's."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax.diffusion import grids, guidance, losses, posterior, schedules, times
from nrdm_jax.diffusion.samplers import table
from nrdm_jax.sampling.generate import make_sample_fn

DISCRETE = schedules.ddpm_discrete()
BETAS = np.linspace(1e-4, 0.02, 1000)
BARS = np.cumprod(1 - BETAS)
LN2 = np.log(2.0)
bound = jax.jit(posterior.bound, static_argnums=(0, 5))
log_likelihood = jax.jit(posterior.log_likelihood, static_argnums=3)


def betas_of(places):
    """beta, beta~ and the coefficient of x0 of the steps between places of the thousand (respaced
    ones are their own process), by the formulas of Ho et al., in float64."""
    bars = BARS[places]
    now, then = bars[:-1], bars[1:]
    beta = 1 - now / then
    return beta, beta * (1 - then) / (1 - now), np.sqrt(then) * beta / (1 - now)


@pytest.mark.parametrize("places", [np.arange(999, -1, -1), np.array([999, 800, 400, 37, 4, 0])])
def test_a_step_is_ho_s_posterior_and_its_range_is_from_his_small_to_his_large(places):
    at = jnp.asarray(places / 1000, jnp.float32)
    step = posterior.step(DISCRETE, at[:-1], at[1:])
    beta, small, x0 = betas_of(places)
    np.testing.assert_allclose(step.low, np.log(small), atol=5e-3)
    np.testing.assert_allclose(step.low + step.gap, np.log(beta), atol=5e-3)
    np.testing.assert_allclose(step.x0, x0, rtol=5e-3)
    v = jnp.ones((len(beta), 4))
    np.testing.assert_array_equal(posterior.log_variance(step, -v)[:, 0], step.low)
    np.testing.assert_allclose(posterior.log_variance(step, v)[:, 0], np.log(beta), atol=5e-3)


@pytest.mark.parametrize("name", ["rectified_flow", "cosine", "ve"])
def test_the_range_is_of_one_point_and_of_normal_data_on_every_path(name):
    """Var(x_s | x_t) where x_t = r x_s + noise of the forward process: of known x0, and of data
    N(0, 1)."""
    path = schedules.make_path(name)
    t, s = jnp.float32(0.62), jnp.float32(0.55)
    a, q = (np.float64([path.alpha(u), path.sigma(u)]) for u in (t, s))
    r = a[0] / q[0]
    forward = a[1] ** 2 - r**2 * q[1] ** 2
    step = posterior.step(path, t, s)
    for spread, found in ((q[1] ** 2, step.low), (q[0] ** 2 + q[1] ** 2, step.low + step.gap)):
        np.testing.assert_allclose(
            found, np.log(spread * forward / (r**2 * spread + forward)), atol=1e-4
        )


def gaussian_kl(mean, log_var, other_mean, other_log_var):
    ratio = np.exp(log_var - other_log_var)
    square = (mean - other_mean) ** 2 / np.exp(other_log_var)
    return 0.5 * (other_log_var - log_var - 1 + ratio + square)


def test_bound_is_the_divergence_of_two_gaussians_in_bits():
    i = np.array([999, 500, 3, 1])
    x0, wrong = (jax.random.normal(jax.random.key(k), (4, 6, 2)) for k in range(2))
    v = jax.random.uniform(jax.random.key(2), x0.shape, minval=-1.0)
    t = jnp.asarray(i / 1000, jnp.float32)
    found = bound(DISCRETE, x0, x0 + 0.1 * wrong, v, t, True)
    for k, place in enumerate(i):
        (beta,), (small,), (factor,) = betas_of(np.array([place, place - 1]))
        log_var = (v[k] + 1) / 2 * np.log(beta) + (1 - v[k]) / 2 * np.log(small)
        kl = gaussian_kl(0.0, np.log(small), 0.1 * factor * np.asarray(wrong[k]), log_var)
        np.testing.assert_allclose(found[k], kl.mean() / LN2, rtol=2e-3, atol=1e-6)
    # Nothing is lost where the estimate is right and the variance the posterior's.
    exact = bound(DISCRETE, x0, x0, -jnp.ones_like(v), t, True)
    np.testing.assert_allclose(exact, 0.0, atol=1e-7)


def test_the_last_step_s_bound_is_the_likelihood_of_the_data():
    x0 = jnp.rint(jax.random.uniform(jax.random.key(0), (1, 50)) * 255) / 127.5 - 1
    mean = x0 + 0.01 * jax.random.normal(jax.random.key(1), x0.shape)
    # DiT: from the clipped log beta~, that of step 1, to log beta_0.
    (_, small, _), high = betas_of(np.array([1, 0])), BETAS[0]
    for v in (-1.0, 0.3, 1.0):
        log_var = (v + 1) / 2 * np.log(high) + (1 - v) / 2 * np.log(small)
        for pixels in (True, False):
            found = bound(DISCRETE, x0, mean, jnp.full_like(x0, v), jnp.zeros(1), pixels)
            nats = -log_likelihood(x0, mean, jnp.float32(log_var[0]), pixels)
            np.testing.assert_allclose(found, np.mean(nats) / LN2, rtol=1e-3)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.3), (-0.98, 0.01), (0.5, 0.002), (3.0, 0.5)])
def test_masses_of_all_pixel_values_sum_to_one(mean, std):
    values = jnp.arange(256) / 127.5 - 1.0
    log_p = log_likelihood(values, jnp.float32(mean), jnp.float32(2 * np.log(std)), True)
    assert bool(jnp.all(jnp.isfinite(log_p)))
    np.testing.assert_allclose(jnp.sum(jnp.exp(log_p)), 1.0, atol=1e-4)
    inner = slice(1, -1)  # wide against a bin, the mass is the density times its width
    if std == 0.3:
        density = log_likelihood(values, jnp.float32(mean), jnp.float32(2 * np.log(std)), False)
        np.testing.assert_allclose(log_p[inner], density[inner], atol=1e-3)


def test_likelihoods_far_out_have_gradients():
    gradient = jax.grad(
        lambda s: jnp.sum(log_likelihood(jnp.array([-1.0, 0.0, 1.0]), jnp.float32(0.7), s, True))
    )(jnp.float32(2 * np.log(1e-3)))
    assert np.isfinite(gradient) and gradient > 0  # the variance should grow


def terms_of(path, output_of, t):
    """Terms of a network whose output is `output_of(x_t)`, at the times t."""
    x0 = jax.random.uniform(jax.random.key(0), (len(t), 5, 1), minval=-1.0)
    keys = jax.random.split(jax.random.key(1), len(t))
    return losses.random_terms(
        lambda x, *_: (output_of(x), {}), path, "v", lambda _: t, x0, t, keys,
        learned_variance=True, pixels=True,
    )[0]  # fmt: skip


@pytest.mark.parametrize("name", ["rectified_flow", "ddpm_discrete", "ve"])
def test_only_the_variance_learns_from_the_bound_on_every_path(name):
    path = schedules.make_path(name, t_min=0.001 if name == "rectified_flow" else None)
    t = jnp.linspace(path.t_min, path.t_max, 9)

    def bounds(w):
        return jnp.sum(terms_of(path, lambda x: jnp.concatenate([w[0] * x, w[1] * x], -1), t).bound)

    mean, variance = jax.jit(jax.grad(bounds))(jnp.array([0.3, 0.2]))
    assert mean == 0.0 and np.isfinite(variance) and variance != 0


def test_the_variance_that_is_learned_is_the_estimate_s_own_error():
    """The optimum of the bound in v: beta~ and the square of what the mean is wrong by."""
    t, error = jnp.full(1, 0.004), 0.05
    step = posterior.step(DISCRETE, t, t - 0.001)
    best = jnp.log(jnp.exp(step.low) + (step.x0 * error) ** 2)
    v = 2 * (best - step.low) / step.gap - 1

    def of(v):
        x = jnp.zeros((1, 3))
        return bound(DISCRETE, x, x + error, jnp.full((1, 3), v), t, True)[0]

    assert abs(float(jax.grad(of)(v[0]))) < 1e-4 < abs(float(jax.grad(of)(v[0] + 0.5)))


def gaussian_predict(path, v):
    """Data N(0, 0.5^2), and a constant v."""

    def predict(x, t):
        a, s = (schedules.broadcast(f(t), x) for f in (path.alpha, path.sigma))
        total = 0.25 * a**2 + s**2
        return 0.25 * a / total * x, s / total * x, jnp.full_like(x, v)

    return predict


def test_sampling_at_the_ends_of_the_range_is_ddpm_with_the_small_and_the_large_variance():
    at = grids.make_times("respaced", DISCRETE, 7)
    places = np.rint(np.asarray(at) * 1000).astype(int)
    beta, _, _ = betas_of(places)
    start = jax.random.normal(jax.random.key(0), (3, 4))
    noise = jax.random.normal(jax.random.key(1), (6, 3, 4))
    solve = table.make_sampler("ddpm", DISCRETE, {})

    def run(v, noises=noise):
        whole = gaussian_predict(DISCRETE, v)
        return solve(
            lambda *a: whole(*a)[:2], DISCRETE, start, at, lambda i: noises[i],
            predict_variance=None if v is None else whole,
        )  # fmt: skip

    plain = gaussian_predict(DISCRETE, 0.0)
    small = solve(lambda *a: plain(*a)[:2], DISCRETE, start, at, lambda i: noise[i])
    np.testing.assert_allclose(run(-1.0), small, rtol=1e-4, atol=1e-5)
    # In float64 by Ho et al., eq. 7 and 11, with the betas of the respaced process.
    x = np.asarray(start, np.float64)
    for i, (now, then) in enumerate(itertools.pairwise(places)):
        x0 = 0.25 * np.sqrt(BARS[now]) / (0.25 * BARS[now] + 1 - BARS[now]) * x
        ratio = BARS[now] / BARS[then]
        mean = np.sqrt(BARS[then]) * beta[i] * x0 + np.sqrt(ratio) * (1 - BARS[then]) * x
        x = mean / (1 - BARS[now]) + np.sqrt(beta[i]) * np.asarray(noise[i])
    np.testing.assert_allclose(run(1.0), x, rtol=1e-4, atol=1e-5)


def test_a_sampler_takes_the_variance_from_the_network_s_second_half():
    seeds = jnp.arange(2)

    def sample(learned):
        return jax.jit(
            make_sample_fn(
                lambda v, x, t, label: jnp.concatenate([0.1 * x, jnp.full_like(x, v)], axis=-1),
                DISCRETE, "eps", shape=(4,), solve=table.make_sampler("ddpm", DISCRETE, {}),
                times=grids.make_times("respaced", DISCRETE, 5), learned_variance=learned,
            )
        )  # fmt: skip

    own, plain = sample(True), sample(False)
    np.testing.assert_allclose(own(-1.0, seeds, seeds), plain(9.0, seeds, seeds), rtol=1e-4)
    assert not np.allclose(own(1.0, seeds, seeds), plain(9.0, seeds, seeds), rtol=1e-2)


def test_guidance_leaves_the_variance_as_the_label_has_it():
    path = schedules.cosine()
    x = jax.random.normal(jax.random.key(0), (3, 2))
    t, label = jnp.asarray([0.2, 0.5, 0.8]), jnp.asarray([1, 2, 3])

    def denoise(x, t, label):
        scale = (1.0 + label.astype(jnp.float32))[:, None]
        return jnp.concatenate([x * scale, 5.0 * scale * jnp.ones_like(x)], axis=-1)

    def free(denoise):
        return guidance.classifier_free(denoise, jnp.zeros_like, 3.0, rescale=0.5)

    for guided, alone in (
        (free(denoise), free(lambda *a: denoise(*a)[..., :2])),
        (guidance.autoguidance(denoise, lambda *a: 0.5 * denoise(*a), 2.0),
         guidance.autoguidance(*(lambda *a, f=f: f * denoise(*a)[..., :2] for f in (1, 0.5)), 2.0)),
        (guidance.dynamic_thresholding(denoise, path, "v", 0.5),
         guidance.dynamic_thresholding(lambda *a: denoise(*a)[..., :2], path, "v", 0.5)),
    ):  # fmt: skip
        out = guided(x, t, label)
        np.testing.assert_array_equal(out[..., 2:], denoise(x, t, label)[..., 2:])
        np.testing.assert_allclose(out[..., :2], alone(x, t, label), rtol=1e-6)


def test_native_loss_does_not_see_the_variance():
    t = times.uniform(0.1, 0.9)(jax.random.split(jax.random.key(3), 4))

    def of(v):
        return terms_of(schedules.cosine(), lambda x: jnp.concatenate([0.1 * x, v + 0 * x], -1), t)

    jitted = jax.jit(of)
    found = [jitted(v) for v in (-1.0, 4.0)]
    np.testing.assert_array_equal(found[0].loss, found[1].loss)
    assert not np.allclose(found[0].bound, found[1].bound)


def test_a_variance_that_is_far_too_large_can_be_learned_back():
    """Masses of bins are differences of what rounds to the same number there."""

    def loss(log_var):
        x0 = jnp.linspace(-0.9, 0.9, 7)
        return -jnp.mean(log_likelihood(x0, x0, jnp.full(7, log_var), True))

    for log_var in (0.0, 10.0, 30.0, 60.0):
        value, slope = jax.value_and_grad(loss)(jnp.float32(log_var))
        expected = 0.5 * (log_var + np.log(2 * np.pi)) - np.log(2 * posterior.HALF_BIN)
        np.testing.assert_allclose(value, expected, rtol=1e-3)
        np.testing.assert_allclose(slope, 0.5, rtol=2e-2)
