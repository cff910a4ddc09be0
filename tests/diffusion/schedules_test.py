import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax.diffusion import predictions, schedules

ALL = list(schedules.PATHS)


def times_of(path, count=9):
    return jnp.linspace(path.t_min, path.t_max, count + 2)[1:-1]


@pytest.mark.parametrize("name", ALL)
def test_derivatives(name):
    path = schedules.make_path(name)
    t = times_of(path)
    for f, derivative in ((path.alpha, path.alpha_dot), (path.sigma, path.sigma_dot)):
        np.testing.assert_allclose(jax.vmap(jax.grad(f))(t), derivative(t), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ddpm_linear", "cosine"])
def test_variance_is_preserved(name):
    path = schedules.make_path(name)
    t = times_of(path)
    np.testing.assert_allclose(path.alpha(t) ** 2 + path.sigma(t) ** 2, 1.0, rtol=1e-6)


def test_ddpm_linear_is_the_limit_of_the_discrete_schedule():
    def discrete(steps, t):  # with 1,000 steps these are DDPM's betas, 1e-4 to 0.02
        betas = np.linspace(0.1, 20.0, steps) / steps
        return np.cumprod(1 - betas)[np.rint(t * steps).astype(int) - 1]

    t = np.asarray([0.1, 0.4, 0.7])
    ours = np.asarray(schedules.ddpm_linear().alpha(jnp.asarray(t)) ** 2)
    errors = [np.max(np.abs(discrete(steps, t) / ours - 1)) for steps in (1000, 10_000, 100_000)]
    assert errors[0] < 0.03 and errors[1] < errors[0] / 8 and errors[2] < 3e-4


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("level", [-6.0, -1.5, 0.0, 4.5])
def test_time_at_log_snr_is_its_inverse(name, level):
    path = schedules.make_path(name)
    t = schedules.time_at_log_snr(path, level)
    assert abs(float(schedules.log_snr(path, jnp.float32(t))) - level) < 2e-4


def test_an_unreachable_level_names_the_field():
    with pytest.raises(ValueError, match=r"evaluate.log_snr: level 30"):
        schedules.time_at_log_snr(schedules.ddpm_linear(), 30.0)


@pytest.mark.parametrize("name", ALL)
def test_forward_process_has_the_path_s_moments(name):
    # d alpha/dt = f alpha and d(sigma^2)/dt = 2 f sigma^2 + g^2 (Song et al., eq. 5.50 of Särkkä)
    path = schedules.make_path(name)
    t = times_of(path)
    f, g2 = schedules.drift_and_diffusion(path, t)
    slope = jax.vmap(jax.grad(lambda s: path.sigma(s) ** 2))(t)
    np.testing.assert_allclose(path.alpha_dot(t), f * path.alpha(t), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slope, 2 * f * path.sigma(t) ** 2 + g2, rtol=1e-3, atol=1e-4)
    assert bool(jnp.all(g2 >= 0))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", predictions.PREDICTIONS)
def test_predictions_round_trip(name, kind):
    path = schedules.make_path(name)
    x0, eps = (jax.random.normal(jax.random.key(i), (9, 4, 4, 2)) for i in range(2))
    t = times_of(path)
    x_t = schedules.add_noise(path, x0, eps, t)
    output = predictions.target(path, kind, x0, eps, t)
    x0_hat, eps_hat = predictions.to_x0_eps(path, kind, output, x_t, t)
    # What is far from the data cannot tell x0 to more bits than float32 left of it in x_t.
    gain = schedules.broadcast(1 + 1 / path.alpha(t) + 1 / path.sigma(t), x0)
    assert float(jnp.max(jnp.abs(x0_hat - x0) / gain)) < 2e-5
    assert float(jnp.max(jnp.abs(eps_hat - eps) / gain)) < 2e-5


def test_velocity_of_rectified_flow_is_noise_minus_data():
    path = schedules.rectified_flow()
    x0, eps, t = jnp.full((1, 2), 3.0), jnp.full((1, 2), 5.0), jnp.asarray([0.3])
    np.testing.assert_allclose(predictions.target(path, "velocity", x0, eps, t), eps - x0)


def test_v_of_salimans_and_ho():
    path = schedules.cosine()
    x0, eps, t = jnp.full((1, 2), 3.0), jnp.full((1, 2), 5.0), jnp.asarray([0.5])
    root = np.sqrt(0.5)
    np.testing.assert_allclose(
        predictions.target(path, "v", x0, eps, t), root * 5 - root * 3, rtol=1e-6
    )


def test_refusal_names_both_fields():
    with pytest.raises(
        ValueError, match="diffusion.prediction=eps with diffusion.path=rectified_flow"
    ):
        predictions.check(schedules.rectified_flow(), "eps")
