import jax
import jax.numpy as jnp
import numpy as np

from nrdm_jax.diffusion import known, losses, schedules, times

PATH = schedules.rectified_flow()


def zero(x, t, label):
    return jnp.zeros_like(x)


def test_loss_of_a_zero_output_is_the_second_moment_of_the_target():
    # velocity = eps - x0: E = 1 + x0^2
    x0 = jnp.full((256, 8, 8, 1), 0.5)
    keys = jax.random.split(jax.random.key(0), 256)
    terms, _ = losses.random_terms(
        lambda *a: (zero(*a), {}),
        PATH,
        "velocity",
        times.uniform(0.0, 1.0),
        x0,
        jnp.zeros(256, jnp.int32),
        keys,
    )
    assert terms.loss.shape == (256,) and terms.bound is None
    assert abs(float(terms.loss.mean()) - 1.25) < 0.02


def test_loss_of_the_truth_is_zero_and_extra_channels_are_ignored():
    x0, eps = (jax.random.normal(jax.random.key(i), (4, 6, 6, 2)) for i in range(2))
    t = jnp.linspace(0.2, 0.8, 4)

    perfect = jnp.concatenate([eps - x0, jnp.full_like(x0, 7.0)], axis=-1)
    x_t = schedules.add_noise(PATH, x0, eps, t)
    loss, error = losses.loss_and_error(PATH, "velocity", perfect, x_t, x0, eps, t)
    np.testing.assert_allclose(loss, 0.0, atol=1e-10)
    np.testing.assert_allclose(error, 0.0, atol=1e-10)


def test_levels_count_exactly_the_unmasked_and_ignore_the_batching():
    x0 = jax.random.normal(jax.random.key(0), (6, 4, 4, 1))
    label, seeds = jnp.zeros(6, jnp.int32), jnp.arange(6, dtype=jnp.uint32)

    def sums(rows, mask):
        return losses.level_sums(
            zero, PATH, "velocity", (0.2, 0.7), x0[rows], label[rows], mask, seeds[rows]
        )

    whole = sums(jnp.arange(6), jnp.asarray([1, 1, 1, 1, 1, 0], bool))
    parts = [sums(jnp.arange(i, i + 1), jnp.ones(1, bool)) for i in range(5)]
    for a, b in zip(whole, (sum(p[k] for p in parts) for k in range(2)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    # x0 error of a zero velocity is that of x_t itself: t^2 |eps - x0|^2
    np.testing.assert_allclose(whole[1], whole[0] * jnp.asarray([0.04, 0.49]), rtol=1e-4)


def test_only_what_is_not_known_counts():
    """An output that is the truth but where the example is known, and there anything, loses
    nothing; one that is wrong by 2 elsewhere loses 4, however few those places are."""
    x0, eps = (jax.random.normal(jax.random.key(i), (5, 4, 6, 6, 2)) for i in range(2))
    t = jnp.linspace(0.2, 0.8, 5)
    x_t = schedules.add_noise(PATH, x0, eps, t)
    keys = jax.random.split(jax.random.key(2), 5)
    for see in (known.first_frames(3), known.around_a_box()):
        seen, unknown = known.look(see, {}, x0, keys)
        assert seen is not None and unknown is not None
        for wrong, loss in ((0.0, 0.0), (2.0, 4.0)):
            output = eps - x0 + jnp.where(unknown > 0, wrong, 1e3)
            found, error = losses.loss_and_error(PATH, "velocity", output, x_t, x0, eps, t, unknown)
            np.testing.assert_allclose(found, loss, rtol=1e-5, atol=1e-9)
            np.testing.assert_allclose(error, loss * t**2, rtol=1e-5, atol=1e-9)
    classes = {"segmentation": jnp.zeros(x0.shape[:-1], jnp.uint8)}
    assert known.look(known.segmentation(2), classes, x0, keys)[1] is None
    assert known.look(None, {}, x0, keys) == (None, None)
