import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.sampler_order import DETERMINISTIC
from nrdm_jax.diffusion import grids, noise, schedules, times
from nrdm_jax.diffusion.samplers import table
from nrdm_jax.sampling.generate import make_sample_fn

MEAN, STD = 0.5, 0.7


def gaussian(path):
    """The exact estimates of x0 and eps for data N(MEAN, STD^2)."""

    def predict(x, t):
        a, s = (schedules.broadcast(f(t), x) for f in (path.alpha, path.sigma))
        total = a**2 * STD**2 + s**2
        x0 = MEAN + a * STD**2 / total * (x - a * MEAN)
        return x0, s / total * (x - a * MEAN)

    return predict


def exact_flow(path, x, start, end):
    """The probability-flow ODE of a Gaussian keeps its quantiles: (x - a m) / std of x_t is the
    same at every t."""

    def moments(t):
        a, s = path.alpha(t), path.sigma(t)
        return a * MEAN, jnp.sqrt(a**2 * STD**2 + s**2)

    (mean, std), (mean_then, std_then) = moments(start), moments(end)
    return mean_then + std_then * (x - mean) / std


def solver(name, path, **options):
    return table.make_sampler(name, path, {"diffusion": "sbdm", **options})


# All solvers on all paths, with more steps and in float64: benchmarks.sampler_order.
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_convergence_order_in_the_log_snr(name):
    sampler, options, order = DETERMINISTIC[name]
    path = schedules.make_path("cosine")
    x = jax.random.normal(jax.random.key(0), (64, 3))
    errors = []
    for steps in (16, 32):
        times = schedules.time_at(path, jnp.linspace(-2.0, 2.0, steps + 1))
        out = solver(sampler, path, **options)(gaussian(path), path, x, times, None)
        exact = exact_flow(path, x, times[0], times[-1])
        errors.append(float(jnp.max(jnp.abs(out - exact))))
    measured = np.log2(errors[0] / errors[1])
    assert order - 0.5 < measured < order + 0.8, errors


def test_the_adaptive_solver_keeps_its_tolerance():
    path = schedules.make_path("rectified_flow")
    x = jax.random.normal(jax.random.key(0), (64, 3))
    times = jnp.array([0.9, 0.1])
    errors = []
    for tolerance in (1e-2, 1e-5):
        out = solver("dopri5", path, tolerance=tolerance)(gaussian(path), path, x, times, None)
        errors.append(float(jnp.max(jnp.abs(out - exact_flow(path, x, *times)))))
    assert errors[1] < 1e-4 < errors[0] < 0.1


STEPS_IN_T = ("euler", "heun")


@pytest.mark.parametrize(
    ("sampler", "name"),
    [
        *((sampler, name) for sampler in table.SAMPLERS for name in ("rectified_flow", "ve")),
        *((sampler, "ddpm_linear") for sampler in ("euler", "sde")),
        ("edm", "cosine"),
    ],
)
def test_samples_have_the_data_s_mean_and_std(sampler, name):
    path = schedules.make_path(name)
    if name == "ve" and sampler in STEPS_IN_T:
        with pytest.raises(ValueError, match=f"sample.sampler is {sampler}.*diffusion.path=ve"):
            solver(sampler, path)
        return
    diffusion = "sigma" if name == "rectified_flow" else "sbdm"
    sample = make_sample_fn(
        lambda params, x, t, label: gaussian(path)(x, t)[0],
        path,
        "x0",
        shape=(1,),
        solve=solver(sampler, path, diffusion=diffusion, churn=10.0),
        times=grids.make_times("log_snr" if name == "ve" else "uniform", path, 200),
    )
    out = jax.jit(sample)({}, jnp.arange(20_000), jnp.zeros(20_000, jnp.int32))
    assert abs(float(out.mean()) - MEAN) < 0.03
    # The last estimate of x0 is a mean: it lacks the spread that the last noise hides, which is
    # of 2 % at most here.
    assert abs(float(out.std()) - STD) < 0.03


@pytest.mark.parametrize(
    ("name", "steps"),
    [("rectified_flow", 2), ("cosine", 30), ("ve", 30),
     *(pytest.param(*case, marks=pytest.mark.slow)
       for case in (("rectified_flow", 1), ("rectified_flow", 30), ("cosine", 2)))],
)  # fmt: skip
def test_few_steps_stay_finite_and_within_the_size_of_x_t(name, steps):
    """Of every solver on every grid: what the network is given is of the size that the path says,
    and what comes out of the size of the data."""
    path = schedules.make_path(name)
    seeds, shape = jnp.arange(2), (256,)

    def predict(x, t):
        spread = jnp.sqrt((path.alpha(t) * (STD + MEAN)) ** 2 + path.sigma(t) ** 2)
        fits = jnp.std(x, axis=1) < 3 * spread
        return tuple(jnp.where(fits[:, None], y, jnp.nan) for y in gaussian(path)(x, t))

    for sampler in table.SAMPLERS:
        if name == "ve" and sampler in STEPS_IN_T:
            continue
        solve = solver(sampler, path, diffusion="sbdm" if name == "ve" else "sigma", churn=2.0)

        @jax.jit
        def sample(at, solve=solve):
            start = path.sigma(at[0]) * noise.noise_of_seeds(seeds, shape)
            x = solve(predict, path, start, at, noise.noise_of_steps(seeds, shape))
            return predict(x, jnp.full(2, at[-1]))[0]

        for grid in ("uniform", "quadratic", "karras", "log_snr"):
            own = sampler == "dopri5"
            out = sample(grids.ends(path) if own else grids.make_times(grid, path, steps))
            assert bool(jnp.all(jnp.isfinite(out))), (sampler, grid)
            assert float(jnp.max(jnp.std(out, axis=1))) < 2 * STD, (sampler, grid)


def test_what_a_solver_cannot_do_is_refused_with_the_fields():
    with pytest.raises(ValueError, match="sample.diffusion is sbdm.*diffusion.path=cosine"):
        solver("sde", schedules.make_path("cosine"))
    flow, exploding = (schedules.make_path(name) for name in ("rectified_flow", "ve"))
    with pytest.raises(ValueError, match="sample.diffusion is sbdm.*diffusion.path=rectified_flow"):
        solver("sde", flow)
    with pytest.raises(ValueError, match="sample.diffusion is sigma.*diffusion.path=ve"):
        solver("sde", exploding, diffusion="sigma")
    with pytest.raises(ValueError, match="sample.sampler is 'eular'"):
        solver("eular", flow)


def test_one_step_of_ddim_is_exact_for_a_point():
    path = schedules.cosine()
    x0, eps = jnp.full((2, 3), 0.4), jax.random.normal(jax.random.key(0), (2, 3))
    times = jnp.array([path.t_max, 0.2])
    start, end = (schedules.add_noise(path, x0, eps, jnp.full((2,), t)) for t in times)

    def predict(x, t):
        return x0, (x - path.alpha(t)[:, None] * x0) / path.sigma(t)[:, None]

    out = solver("ddim", path)(predict, path, start, times, None)
    np.testing.assert_allclose(out, end, atol=2e-4)


def test_ddim_with_eta_is_ddpm_s_posterior():
    """For alpha^2 + sigma^2 = 1: mean and variance of q(x' | x, x0) (Ho et al., eq. 7)."""
    path = schedules.cosine()
    x0, x = jnp.full((1, 4), 0.3), jax.random.normal(jax.random.key(0), (1, 4))
    times = jnp.array([0.6, 0.4])

    def predict(x, t):
        return x0, (x - path.alpha(t)[:, None] * x0) / path.sigma(t)[:, None]

    def end(z):
        return solver("ddpm", path)(predict, path, x, times, lambda i: jnp.full_like(x, z))

    bar, bar_then = (path.alpha(t) ** 2 for t in times)
    ratio = bar / bar_then
    mean = (jnp.sqrt(bar_then) * (1 - ratio) * x0 + jnp.sqrt(ratio) * (1 - bar_then) * x) / (
        1 - bar
    )
    std = jnp.sqrt((1 - bar_then) / (1 - bar) * (1 - ratio))
    np.testing.assert_allclose(end(0.0), mean, rtol=1e-5)
    np.testing.assert_allclose(end(1.0) - end(0.0), jnp.broadcast_to(std, x.shape), rtol=1e-4)


def test_respaced_times_are_dit_s():
    path = schedules.ddpm_discrete()
    t = np.asarray(grids.make_times("respaced", path, 250))
    # space_timesteps(1000, "250") of guided diffusion: 0, 4.012.., 8.024.., rounded
    expected = {round(i * 999 / 249) for i in range(250)}
    assert set(np.rint(t * 1000).astype(int)) == expected and len(expected) == 250
    whole = np.asarray(grids.make_times("respaced", path, 1000))
    np.testing.assert_allclose(whole, np.arange(999, -1, -1) / 1000, atol=1e-6)
    with pytest.raises(ValueError, match="diffusion.path=rectified_flow has not 10 with noise"):
        grids.make_times("respaced", schedules.rectified_flow(), 10)


def test_discrete_times_are_whole_thousandths_each_as_likely():
    inner = np.asarray(times.discrete(1e-4, 0.9999)(jax.random.split(jax.random.key(1), 40_000)))
    np.testing.assert_allclose([inner.min(), inner.max()], [0.001, 0.999], rtol=1e-6)
    with pytest.raises(ValueError, match="no whole thousandth is in"):
        times.discrete(0.0001, 0.0002)
    drawn = np.asarray(times.discrete(0.0, 0.999)(jax.random.split(jax.random.key(0), 40_000)))
    i = np.rint(drawn * 1000).astype(int)
    np.testing.assert_allclose(drawn, i / 1000, atol=1e-6)
    assert set(i) == set(range(1000)) and np.bincount(i).max() < 80


@pytest.mark.parametrize("name", sorted(set(grids.GRIDS) - {"respaced"}))
@pytest.mark.parametrize("path", schedules.PATHS)
def test_grids_fall_from_the_noise_to_before_the_data(name, path):
    path = schedules.make_path(path)
    t = np.asarray(grids.make_times(name, path, 20))
    assert t.shape == (20,) and t[0] == np.float32(path.t_max)
    assert np.all(np.diff(t) < 0) and t[-1] >= 0 and path.sigma(t[-1]) > 0
    ratio = np.asarray(path.sigma(jnp.asarray(t)) / path.alpha(jnp.asarray(t)))[1:]
    if name == "karras":
        np.testing.assert_allclose(
            np.diff(ratio ** (1 / 7)), np.diff(ratio ** (1 / 7))[0], rtol=2e-2
        )
    if name == "log_snr":
        np.testing.assert_allclose(np.diff(np.log(ratio)), np.diff(np.log(ratio))[0], rtol=2e-2)
    assert len(grids.make_times(name, path, 1)) == 1


def test_no_grid_goes_below_the_training_times():
    path = schedules.make_path("rectified_flow", t_min=0.05)
    for name in ("uniform", "quadratic", "karras", "log_snr"):
        assert float(grids.make_times(name, path, 30)[-1]) > 0.0499
    assert float(grids.ends(path)[-1]) > 0.0499


def test_the_weaker_network_is_the_second_of_each_pair():
    path = schedules.rectified_flow()

    def network(params, x, t, label):
        return params * jnp.ones_like(x)  # a constant velocity: x0 = x - t v

    def sample(guide):
        return make_sample_fn(
            network, path, "velocity", shape=(3,), solve=solver("euler", path),
            times=grids.make_times("uniform", path, 4), guide=guide,
            weaker=lambda params, *x: network(10 * params, *x),
        )  # fmt: skip

    def away(own, weaker):
        return lambda x, t, label: 3 * own(x, t, label) - 2 * weaker(x, t, label)

    seeds = jnp.arange(2)
    out = sample(away)((jnp.float32(5), jnp.float32(0.1)), seeds, seeds)
    np.testing.assert_allclose(out, noise.noise_of_seeds(seeds, (3,)) - 13, rtol=1e-5)


def test_noise_of_steps_is_of_the_seed_and_the_step():
    one, many = (noise.noise_of_steps(jnp.asarray(s), (3,)) for s in ([7], [5, 7]))
    np.testing.assert_array_equal(one(jnp.int32(2))[0], many(jnp.int32(2))[1])
    start = noise.noise_of_seeds(jnp.asarray([7]), (3,))
    assert not np.allclose(one(jnp.int32(0)), one(jnp.int32(1)))
    assert not np.allclose(one(jnp.int32(0)), start)


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


def test_log_normal_times_have_those_quantiles_of_the_noise():
    path = schedules.make_path("ve")
    t = times.log_normal(path, -1.2, 1.2)(jax.random.split(jax.random.key(0), 20_000))
    found = np.quantile(np.log(path.sigma(t)), [0.1587, 0.5, 0.8413])
    np.testing.assert_allclose(found, [-2.4, -1.2, 0.0], atol=0.04)


def test_mode_times_have_the_density_of_their_formula():
    keys = jax.random.split(jax.random.key(0), 20_000)
    t = np.sort(np.asarray(times.mode(0.0, 1.0, 1.29)(keys)))
    u = np.linspace(0, 1, 2001)
    formula = 1 - u - 1.29 * (np.cos(np.pi * u / 2) ** 2 - 1 + u)
    np.testing.assert_allclose(
        np.quantile(t, [0.2, 0.5, 0.8]), np.interp([0.8, 0.5, 0.2], u, formula), atol=0.01
    )
    plain = times.mode(0.2, 0.6, 0.0)(keys)
    np.testing.assert_allclose(np.quantile(plain, [0.1, 0.5, 0.9]), [0.24, 0.4, 0.56], atol=0.01)
