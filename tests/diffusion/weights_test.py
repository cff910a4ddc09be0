"""Weights are what their authors put on the loss of x0, eps, the velocity or the score."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax.diffusion import losses, predictions, schedules, weights

LEVELS = jnp.linspace(-4.0, 4.0, 9)  # log SNR


def case(name, kind):
    """A path, times at `LEVELS`, and native loss and error of x0 of outputs that are wrong."""
    whole = schedules.make_path(name)
    ends = {"t_min": whole.t_min + 0.01, "t_max": whole.t_max - 0.01}
    path = schedules.make_path(name, sigma_data=0.5, **ends)
    t = schedules.time_at(path, LEVELS / 2)
    x0, eps, wrong = (jax.random.normal(jax.random.key(i), (9, 32)) for i in range(3))
    x_t = schedules.add_noise(path, x0, eps, t)
    output = predictions.target(path, kind, x0, eps, t) + wrong
    return path, t, *losses.loss_and_error(path, kind, output, x_t, x0, eps, t)


# On the loss of x0, by the log SNR and the path.
OF_X0 = {
    "min_snr": lambda path, t, level: jnp.minimum(jnp.exp(level), 5.0),
    "sigmoid": lambda path, t, level: (
        -jax.vmap(jax.grad(lambda s: schedules.log_snr(path, s)))(t)
        * jnp.exp(level)
        / (1 + jnp.exp(level - 1.5))
    ),
    "edm": lambda path, t, level: (jnp.exp(-level) + 0.25) / (jnp.exp(-level) * 0.25),
}


@pytest.mark.parametrize("weight", OF_X0)
@pytest.mark.parametrize("kind", predictions.PREDICTIONS)
@pytest.mark.parametrize("name", schedules.PATHS)
def test_weight_of_the_error_of_x0(name, kind, weight):
    path, t, loss, error = case(name, kind)
    found = weights.make_weights(weight, path, kind, bias=1.5)(t)
    np.testing.assert_allclose(found * loss, OF_X0[weight](path, t, LEVELS) * error, rtol=3e-3)


@pytest.mark.parametrize("kind", predictions.PREDICTIONS)
@pytest.mark.parametrize("name", schedules.PATHS)
def test_velocity_and_likelihood(name, kind):
    path, t, loss, error = case(name, kind)
    # Of an error of x0, that of the eps that goes with it.
    of_eps = error * (path.alpha(t) / path.sigma(t)) ** 2
    velocity = error * (path.alpha_dot(t) - path.sigma_dot(t) * path.alpha(t) / path.sigma(t)) ** 2
    found = weights.make_weights("velocity", path, kind)(t)
    np.testing.assert_allclose(found * loss, velocity, rtol=3e-3)
    _, g2 = schedules.drift_and_diffusion(path, t)
    found = weights.make_weights("likelihood", path, kind)(t)
    np.testing.assert_allclose(found * loss, g2 * of_eps / path.sigma(t) ** 2, rtol=3e-3)


def test_edm_s_weight_of_edm_s_output_is_one():
    path = schedules.make_path("ve", sigma_data=0.5)
    t = jnp.linspace(0, 1, 11)
    np.testing.assert_allclose(weights.make_weights("edm", path, "edm")(t), 1.0, rtol=1e-5)
    np.testing.assert_allclose(weights.make_weights("uniform", path, "edm")(t), 1.0)


def test_every_weight_is_finite_or_refused_with_the_fields():
    refused = set()
    for name in schedules.PATHS:
        path = schedules.make_path(name)
        for weight in weights.WEIGHTS:
            for kind in predictions.PREDICTIONS:
                try:
                    predictions.check(path, kind)
                    found = weights.make_weights(weight, path, kind)
                except ValueError as error:
                    assert f"diffusion.path={name}" in str(error)
                    refused.add((name, weight))
                    continue
                t = jnp.linspace(path.t_min, path.t_max, 101)
                assert bool(jnp.all(jnp.isfinite(found(t)) & (found(t) >= 0)))
    assert ("rectified_flow", "likelihood") in refused  # g is infinite at both ends
    assert ("ve", "likelihood") not in refused
