"""Guidance is its papers' formulas."""

import jax
import jax.numpy as jnp
import numpy as np

from nrdm_jax.diffusion import guidance, predictions, schedules


def no_class(label):
    return jnp.full_like(label, 9)


def denoise(x, t, label):
    return x * (1.0 + label.astype(jnp.float32))[:, None] + t[:, None]


def arguments():
    x = jax.random.normal(jax.random.key(0), (3, 50))
    return x, jnp.asarray([0.1, 0.5, 0.9]), jnp.asarray([1, 2, 3])


def test_guidance_is_the_formula_and_scale_one_is_free():
    x, t, label = jnp.ones((3, 2)), jnp.arange(3.0), jnp.asarray([1, 2, 3])
    assert guidance.classifier_free(denoise, no_class, 1.0) is denoise
    expected = denoise(x, t, label * 0 + 9) + 2.5 * (
        denoise(x, t, label) - denoise(x, t, label * 0 + 9)
    )
    np.testing.assert_allclose(
        guidance.classifier_free(denoise, no_class, 2.5)(x, t, label), expected
    )


def test_outside_its_interval_guidance_is_off():
    path = schedules.rectified_flow()
    x, t, label = arguments()
    scale = guidance.within(path, 3.0, 0.5, 2.0)
    np.testing.assert_array_equal(scale(t), [1.0, 3.0, 1.0])
    assert float(scale(jnp.asarray([1.0]))[0]) == 1.0  # where alpha is 0
    out = guidance.classifier_free(denoise, no_class, scale)(x, t, label)
    whole = guidance.classifier_free(denoise, no_class, 3.0)(x, t, label)
    np.testing.assert_allclose(out[0], denoise(x, t, label)[0], rtol=1e-5)
    np.testing.assert_allclose(out[1], whole[1], rtol=1e-6)


def test_rescaled_guidance_has_the_deviation_of_the_conditional_output():
    x, t, label = arguments()
    plain = guidance.classifier_free(denoise, no_class, 4.0)(x, t, label)
    conditional = np.std(denoise(x, t, label), axis=1)
    whole = guidance.classifier_free(denoise, no_class, 4.0, rescale=1.0)(x, t, label)
    np.testing.assert_allclose(np.std(whole, axis=1), conditional, rtol=1e-5)
    half = guidance.classifier_free(denoise, no_class, 4.0, rescale=0.5)(x, t, label)
    np.testing.assert_allclose(half, 0.5 * (whole + plain), rtol=1e-5)


def test_autoguidance_goes_away_from_the_weaker_network():
    x, t, label = arguments()

    def weaker(x, t, label):
        return 0.5 * x

    out = guidance.autoguidance(denoise, weaker, 2.0)(x, t, label)
    np.testing.assert_allclose(out, 2 * denoise(x, t, label) - 0.5 * x, rtol=1e-5, atol=1e-5)
    same = guidance.autoguidance(denoise, weaker, 1.0)(x, t, label)
    np.testing.assert_allclose(same, denoise(x, t, label), rtol=1e-5, atol=1e-6)


def test_thresholding_keeps_estimates_within_the_pixels():
    path, kind = schedules.rectified_flow(), "velocity"
    x, t, label = arguments()
    wide = jax.random.normal(jax.random.key(1), x.shape) * jnp.asarray([[3.0], [0.2], [1.5]])

    def network(x, t, label):  # of which x0 is `wide`
        return predictions.target(path, kind, wide, (x - (1 - t)[:, None] * wide) / t[:, None], t)

    guided = guidance.dynamic_thresholding(network, path, kind, 0.9)
    x0, eps = predictions.to_x0_eps(path, kind, guided(x, t, label), x, t)
    s = np.maximum(np.quantile(np.abs(wide), 0.9, axis=1, keepdims=True), 1.0)
    np.testing.assert_allclose(x0, np.clip(wide, -s, s) / s, atol=1e-4)
    np.testing.assert_allclose((1 - t)[:, None] * x0 + t[:, None] * eps, x, atol=1e-4)
    assert float(jnp.max(jnp.abs(x0))) <= 1 + 1e-4 and s[1] == 1
