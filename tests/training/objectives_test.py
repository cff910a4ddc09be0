"""What is minimised, by its parts."""

import jax
import jax.numpy as jnp
import numpy as np

from nrdm_jax.diffusion import schedules, times
from nrdm_jax.training.objectives import diffusion_objective

PATH = schedules.cosine()
X = jnp.full((8, 4, 4, 1), 0.5)  # a network that puts out 0 for x0 has the loss 0.25
BATCH = {"x": X, "label": jnp.zeros(8, jnp.int32)}
KEYS = jax.random.split(jax.random.key(0), 8)


def objective(**more):
    def apply(params, x_t, t, label):
        return jnp.broadcast_to(params["w"], X.shape)

    return diffusion_objective(
        apply, PATH, "x0", times.uniform(PATH.t_min, PATH.t_max), lambda t: 1.0 + t,
        null_label=1, label_dropout=0.0, **more,
    )  # fmt: skip


def test_where_it_is_the_logarithm_of_the_loss_the_uncertainty_has_no_gradient():
    learned = objective(uncertainty=lambda params, level: params["u"](level))
    plain, _ = objective()({"w": 0.0}, BATCH, KEYS)

    def of(shift):
        def u(level):
            # t by the level: l = 0.25 (1 + t)
            t = schedules.time_at(PATH, level / 2)
            return jnp.log(0.25 * (1.0 + t)) + shift

        return learned({"w": 0.0, "u": u}, BATCH, KEYS)

    loss, slope = jax.jit(lambda: jax.jvp(lambda s: of(s)[0], (0.0,), (1.0,)))()
    np.testing.assert_allclose(slope, 0.0, atol=1e-5)
    np.testing.assert_allclose(loss, 1.0 + jnp.log(plain), rtol=1e-4)
    for wrong in (-0.7, 0.7):
        assert float(jnp.mean(of(wrong)[0])) > float(jnp.mean(loss)) + 0.1
    np.testing.assert_allclose(of(0.3)[1]["weighted_loss"], plain.mean(), rtol=1e-5)


def test_at_its_start_the_uncertainty_changes_neither_loss_nor_gradient():
    learned = objective(uncertainty=lambda params, level: params["u"] * jnp.ones_like(level))
    (loss, metrics), plain = (f({"w": 0.3, "u": 0.0}, BATCH, KEYS) for f in (learned, objective()))
    np.testing.assert_array_equal(loss, plain[0])
    np.testing.assert_allclose(metrics["weighted_loss"], jnp.mean(plain[0]))
    assert plain[1] == {}
    slopes = [
        jax.grad(lambda w, f=f: jnp.mean(f({"w": w, "u": 0.0}, BATCH, KEYS)[0]))(0.3)
        for f in (learned, objective())
    ]
    assert slopes[0] == slopes[1] != 0
