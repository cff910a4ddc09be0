"""Estimates of x0 on the way of a sample, of data N(MEAN, STD^2), whose estimates are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from nrdm_jax import build, drawing
from nrdm_jax.diffusion import grids, schedules
from nrdm_jax.diffusion.noise import noise_of_seeds
from nrdm_jax.diffusion.samplers import table
from nrdm_jax.sampling import generate, writers

MEAN, STD, SHAPE = 0.5, 0.7, (3,)
PATH = schedules.make_path("cosine")
SEEDS = jnp.arange(4, dtype=jnp.uint32)
ONE_STEP = ("euler", "ddim")


def apply(params, x_t, t, label):
    del params, label
    a, s = (schedules.broadcast(f(t), x_t) for f in (PATH.alpha, PATH.sigma))
    return MEAN + a * STD**2 / (a**2 * STD**2 + s**2) * (x_t - a * MEAN)


def draw(name, times, preview_times=None):
    options = {"eta": 0.0, "churn": 0.0, "order": 3, "diffusion": "sigma", "tolerance": 1e-5}
    sample = generate.make_sample_fn(
        apply, PATH, "x0", shape=SHAPE, solve=table.make_sampler(name, PATH, options),
        times=times, preview_times=preview_times,
    )  # fmt: skip
    return jax.jit(sample)({}, SEEDS, jnp.zeros(4, jnp.int32))


def exact(at):
    """The estimates at these times on the exact flow, which keeps the quantiles: (4, k, 3)."""
    start = PATH.sigma(jnp.float32(PATH.t_max)) * noise_of_seeds(SEEDS, SHAPE)

    def moments(t):
        a, s = PATH.alpha(t), PATH.sigma(t)
        return a * MEAN, jnp.sqrt(a**2 * STD**2 + s**2)

    mean, std = moments(jnp.float32(PATH.t_max))
    found = []
    for t in at:
        mean_then, std_then = moments(t)
        x = mean_then + std_then * (start - mean) / std
        found.append(apply({}, x, jnp.full(4, t), None))
    return np.stack(found, 1)


@pytest.mark.parametrize("name", table.SAMPLERS)
def test_previews_lie_on_the_way_to_the_sample(name):
    times = grids.make_times("log_snr", PATH, 21)
    places = np.asarray([0, 4, 9, 20])
    at = times[places]
    if name == "dopri5":
        times = grids.ends(PATH)
        at = jnp.linspace(times[0], times[-1], 4)
    sample, previews = draw(name, times, at)
    assert previews.shape == (4, 4, *SHAPE)
    np.testing.assert_array_equal(previews[:, -1], sample)
    np.testing.assert_allclose(sample, draw(name, times), rtol=1e-5, atol=1e-5)
    if name in ONE_STEP:
        ended = draw(name, times[: places[1] + 1])
        np.testing.assert_allclose(previews[:, 1], ended, rtol=1e-5, atol=1e-5)
    if name not in ("ddpm", "dpmpp_2m_sde", "sde"):
        error = {"dopri5": 1e-3, "ddim": 0.2}.get(name, 0.06)
        np.testing.assert_allclose(previews, exact(at), atol=error)
    else:  # from noise to data the estimates spread from nothing to the data's deviation
        spread = np.std(previews, axis=(0, 2))
        assert spread[0] < 0.02 < spread[1] < spread[-1]


def test_a_generator_puts_batches_of_previews_together(tiny_config, fill_zeros):
    tiny_config.sample.batch_size, tiny_config.sample.steps = 8, 3
    parts = build.run(tiny_config)
    weights = fill_zeros(jax.device_get(parts.fresh_state().params), jax.random.key(3), 0.1)
    at = drawing.preview_times(tiny_config, parts.path, 2)
    sampler = drawing.generator(tiny_config, parts.apply, parts.path, parts.mesh, preview_times=at)
    samples, previews = sampler(
        weights, np.arange(10), {"label": np.arange(10, dtype=np.int32) % 4}
    )
    assert samples.shape == (10, 8, 8, 3) and previews.shape == (10, 2, 8, 8, 3)
    np.testing.assert_array_equal(previews[:, -1], samples)
    assert np.abs(previews[:, 0] - samples).max() > 0.1


def test_more_previews_than_steps_are_refused(tiny_config):
    path = schedules.make_path("rectified_flow")
    for count in (1, 6):
        with pytest.raises(ValueError, match=f"--trajectory={count}: give 2 to 5"):
            drawing.preview_times(tiny_config, path, count, steps=5)
    found = drawing.preview_times(tiny_config, path, 3, steps=5)
    np.testing.assert_allclose(found, [1.0, 0.6, 0.2], rtol=1e-6)


@pytest.mark.parametrize("shape", [(64, 64, 3), (5, 64, 64, 1)])
def test_a_row_an_example_and_a_column_a_time(tmp_path, shape):
    x = np.random.default_rng(0).choice([-1.0, 1.0], (2, 3, *shape))
    file = writers.write_trajectory(tmp_path / "new", x, generate.to_pixels(x))
    shown = np.asarray(Image.open(file).convert("RGB"))[..., 0]
    assert file.name == "trajectory.png" and shown.shape == (2 + 2 * 66, 2 + 3 * 66)
    last = generate.to_pixels(x)[1, 2] if len(shape) == 3 else generate.to_pixels(x)[1, 2, 2]
    np.testing.assert_array_equal(shown[-66:-2, -66:-2], last[..., 0])


def test_what_is_no_picture_is_an_array(tmp_path):
    x = np.ones((2, 3, 4, 4, 7), np.float32)
    np.testing.assert_array_equal(np.load(writers.write_trajectory(tmp_path, x, x)), x)
