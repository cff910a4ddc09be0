import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax.diffusion import predictions, schedules

ALL = list(schedules.PATHS)
SHIFTED = [name for name in ALL if name != "ve"]


def times_of(path, count=9):
    return jnp.linspace(path.t_min, path.t_max, count + 2)[1:-1]


@pytest.mark.parametrize(
    ("name", "shift"), [*((name, 1.0) for name in ALL), *((name, 3.0) for name in SHIFTED)]
)
def test_derivatives(name, shift):
    path = schedules.make_path(name, shift=shift)
    t = times_of(path)
    for f, derivative in ((path.alpha, path.alpha_dot), (path.sigma, path.sigma_dot)):
        np.testing.assert_allclose(jax.vmap(jax.grad(f))(t), derivative(t), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ddpm_linear", "ddpm_discrete", "cosine"])
def test_variance_is_preserved(name):
    path = schedules.make_path(name)
    t = times_of(path)
    np.testing.assert_allclose(path.alpha(t) ** 2 + path.sigma(t) ** 2, 1.0, rtol=1e-6)


def test_ddpm_discrete_is_the_product_of_its_betas():
    path = schedules.ddpm_discrete()
    bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    i = np.array([0, 1, 2, 137, 500, 998, 999])
    t = jnp.asarray(i / 1000, jnp.float32)
    np.testing.assert_allclose(path.alpha(t) ** 2, bar[i], rtol=2e-5)
    np.testing.assert_allclose(path.sigma(t) ** 2, 1 - bar[i], rtol=2e-4)


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


@pytest.mark.parametrize("name", SHIFTED)
def test_a_shift_moves_the_log_snr_and_nothing_else(name):
    plain, shifted = (schedules.make_path(name, shift=s) for s in (1.0, 3.0))
    t = times_of(plain)
    moved = schedules.log_snr(plain, t) - schedules.log_snr(shifted, t)
    np.testing.assert_allclose(moved, 2 * np.log(3.0), rtol=1e-4)
    power = 1 if name == "rectified_flow" else 2
    total = shifted.alpha(t) ** power + shifted.sigma(t) ** power
    np.testing.assert_allclose(total, 1.0, rtol=1e-5)


def test_a_shifted_flow_is_the_flow_at_sd3_s_time():
    path, t = schedules.make_path("rectified_flow", shift=3.0), jnp.linspace(0, 1, 11)
    np.testing.assert_allclose(path.sigma(t), 3 * t / (1 + 2 * t), rtol=1e-6)


def test_what_cannot_be_is_refused_with_the_fields():
    with pytest.raises(ValueError, match="diffusion.shift is 2.*diffusion.path=ve"):
        schedules.make_path("ve", shift=2.0)
    with pytest.raises(ValueError, match="diffusion.t_min=0 and diffusion.t_max=2 .* 0 to 1"):
        schedules.make_path("rectified_flow", t_min=0.0, t_max=2.0)


def test_time_at_is_its_inverse_and_stays_within_the_ends():
    for name in ALL:
        path = schedules.make_path(name)
        t = times_of(path)
        lam = jnp.log(path.alpha(t) / path.sigma(t))
        np.testing.assert_allclose(schedules.time_at(path, lam), t, atol=2e-5)
        ends = schedules.time_at(path, jnp.array([-100.0, 100.0]))
        np.testing.assert_allclose(ends, [path.t_max, path.t_min], atol=1e-6)


def test_edm_s_output_is_minus_v_where_the_variance_is_preserved():
    path = schedules.make_path("cosine", sigma_data=1.0)
    x0, eps = (jax.random.normal(jax.random.key(i), (9, 4)) for i in range(2))
    t = times_of(path)
    edm, v = (predictions.target(path, kind, x0, eps, t) for kind in ("edm", "v"))
    np.testing.assert_allclose(edm, -v, rtol=1e-5, atol=1e-6)


def test_edm_s_preconditioning():
    """D(x; sigma) = c_skip x + c_out F(c_in x), with the table's own coefficients; input and target
    of the network have variance one for data of sigma_data."""
    d = 0.5
    path = schedules.make_path("ve", sigma_data=d)
    t = jnp.linspace(0.05, 0.95, 5)
    s = path.sigma(t)[:, None]
    x0, eps = (
        d * jax.random.normal(jax.random.key(0), (5, 20_000)),
        jax.random.normal(jax.random.key(1), (5, 20_000)),
    )
    x = x0 + s * eps
    output = predictions.target(path, "edm", x0, eps, t)
    c_skip, c_out = d**2 / (s**2 + d**2), s * d / jnp.sqrt(s**2 + d**2)
    np.testing.assert_allclose(c_skip * x + c_out * output, x0, rtol=1e-3, atol=2e-3)
    assert np.abs(np.std(output, axis=1) - 1).max() < 0.03
    assert np.abs(np.std(schedules.scaled_input(path, x, t), axis=1) - 1).max() < 0.03
    flow = schedules.rectified_flow()
    assert schedules.scaled_input(flow, x, t) is x
