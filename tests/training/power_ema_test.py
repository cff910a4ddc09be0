"""Post-hoc averages are those that would have been tracked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax.training import power_ema


def tracked(weights, width):
    """The average of (steps, D) weights after each step, by its recursion."""
    average, found = np.zeros(weights.shape[1]), []
    shares = np.asarray(power_ema.share(jnp.arange(1, len(weights) + 1, dtype=jnp.float32), width))
    for share, w in zip(shares.astype(np.float64), weights, strict=True):
        average = average + share * (w - average)
        found.append(average)
    return np.array(found)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.25])
def test_a_width_is_the_standard_deviation_of_the_profile(width):
    steps = 4000
    profile = tracked(np.eye(steps), width)[-1]
    s = np.arange(1, steps + 1)
    mean = profile @ s
    assert abs(profile.sum() - 1) < 1e-6
    assert abs(np.sqrt(profile @ (s - mean) ** 2) / steps - width) < 1e-3


@pytest.mark.parametrize("step", [2, 1_000, 2_000_000])
def test_share_keeps_its_digits_after_any_number_of_steps(step):
    exact = -np.expm1((power_ema.gamma_of(0.1) + 1) * np.log1p(-1 / step))
    found = float(power_ema.share(jnp.float32(step), 0.1))
    assert abs(found / exact - 1) < 1e-5
    assert float(power_ema.share(jnp.float32(1), 0.1)) == 1.0  # the start is forgotten


@pytest.mark.parametrize("width", [0.05, 0.075, 0.1, 0.15, 0.2, 0.25])
def test_post_hoc_is_tracked_to_a_thousandth(width):
    """64 snapshots, of widths 0.1 and 0.25 at 32 steps, of weights that drift, settle, jitter."""
    steps, draw = 6400, np.random.default_rng(0)
    t = np.arange(1, steps + 1)[:, None]
    drift = np.cumsum(draw.normal(size=(steps, 16)), axis=0) / np.sqrt(steps)
    weights = 3.0 * draw.normal(size=(1, 16)) * np.exp(-t / 1500) + drift
    weights += 0.1 * draw.normal(size=(steps, 16))
    kept = [(int(s), w) for w in (0.1, 0.25) for s in np.linspace(steps / 32, steps, 32)]
    averages = {w: tracked(weights, w) for w in (0.1, 0.25)}
    snapshots = np.array([averages[w][s - 1] for s, w in kept])
    for step in (steps, steps // 2):
        found = power_ema.coefficients(kept, step, width) @ snapshots
        direct = tracked(weights[:step], width)[-1]
        assert np.linalg.norm(found - direct) / np.linalg.norm(direct) < 1e-3


def test_the_error_of_a_profile_is_the_most_an_average_can_be_wrong_by():
    """With weights that are the difference of the profiles, Cauchy's inequality is an equality."""
    steps, width, kept = 1500, 0.15, [(s, w) for s in (750, 1500) for w in (0.1, 0.25)]
    factors = power_ema.coefficients(kept, steps, width)
    profiles = np.array([tracked(np.eye(s), w)[-1] @ np.eye(s, steps) for s, w in kept])
    wanted = tracked(np.eye(steps), width)[-1]
    difference = factors @ profiles - wanted
    error = power_ema.profile_error(kept, steps, width, factors)
    assert 0.05 < error < 0.2
    assert abs(np.linalg.norm(difference) / np.linalg.norm(wanted) / error - 1) < 0.01
    gamma = power_ema.gamma_of(width)
    norm = (gamma + 1) / np.sqrt((2 * gamma + 1) * steps)
    assert abs(difference @ difference / (error * norm * np.linalg.norm(difference)) - 1) < 0.01


def test_plus_keeps_the_type_of_the_total():
    total = {"a": jnp.full(3, 2.0), "b": jnp.ones((2, 2))}
    found = power_ema.plus(total, jnp.float32(-0.5), jax.tree.map(jnp.bfloat16, total))
    np.testing.assert_allclose(found["a"], 1.0)
    assert found["b"].dtype == np.float32


def test_every_width_is_averaged_from_the_first_step_on():
    weights = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    averages = power_ema.start({"w": jnp.full(4, 1e3)}, (0.1, 0.25))
    update = jax.jit(power_ema.update)
    for step, w in enumerate(weights, 1):
        averages = update(averages, {"w": jnp.asarray(w)}, jnp.int32(step))
    for width in (0.1, 0.25):
        direct = tracked(weights, width)[-1]
        np.testing.assert_allclose(averages[str(width)]["w"], direct, atol=1e-4)


@pytest.mark.parametrize("width", [0.0, 0.3])
def test_a_width_that_cannot_be_says_so(width):
    with pytest.raises(ValueError, match="is not within"):
        power_ema.gamma_of(width)


def test_a_step_after_all_snapshots_says_so():
    with pytest.raises(ValueError, match="no snapshot of step 11"):
        power_ema.coefficients([(10, 0.1)], 11, 0.1)
