"""Training an autoencoder: its loss, its discriminator, and that it is learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax import autoencoding, build, config, programs
from nrdm_jax.data import sources
from nrdm_jax.training import reconstruction


@pytest.fixture
def small():
    c = config.default()
    c.task, c.autoencoder.name = "autoencoder", "kl"
    c.data.name, c.data.shape, c.data.num_classes = "synthetic", (8, 8, 3), 4
    c.autoencoder.width, c.autoencoder.channel_factors = 8, (1, 1)
    c.train.steps, c.train.batch_size = 20, 16
    c.optim.learning_rate = 5e-3
    c.evaluate.batch_size = 16
    return c


def test_shapes_that_cannot_be_halved_as_often_are_no_shapes_of_samples(small):
    small.autoencoder.channel_factors = (1, 1, 1)
    config.check_shape(small, (12, 20, 3), "--shape")  # whatever model.patch is
    with pytest.raises(ValueError, match=r"--shape has \(12, 10, 3\), .* 2 times; .* 4 divides"):
        config.check_shape(small, (12, 10, 3), "--shape")
    with pytest.raises(ValueError, match="as many axes and channels"):
        config.check_shape(small, (12, 12, 1), "--shape")


class Plain:
    """A posterior without noise."""

    def __init__(self, mean):
        self.mean = mean

    def drawn(self, noise):
        return self.mean

    def divergence(self):
        return jnp.full(self.mean.shape[:1], 6.0)


def game(start=0, weight=0.5):
    """x -> a x, judged by b x: everything in closed form."""
    return reconstruction.reconstruction_objective(
        lambda params, x: Plain(x),
        lambda params, z: params["a"] * z,
        kind="l2",
        kl_weight=0.1,
        discriminate=lambda params, x: params["b"] * jnp.mean(x, axis=(2, 3)),
        discriminator_weight=weight,
        discriminator_start=start,
    )


PARAMS = {"a": jnp.float32(0.5), "b": jnp.float32(0.25)}
BATCH = {"x": jnp.full((2, 1, 1, 3), 0.8, jnp.float32), "label": jnp.zeros(2, jnp.int32)}
KEYS = jax.random.split(jax.random.key(0), 2)


def mean_loss(objective, params, step=0):
    return jnp.mean(objective(params, BATCH, KEYS, step=step)[0])


def test_the_terms_of_the_loss():
    loss, metrics = game()(PARAMS, BATCH, KEYS, step=0)
    error, divergence = (0.8 - 0.4) ** 2, 6.0 / 3
    verdict, hinge = 0.25 * 0.4, (1 - 0.25 * 0.8) + (1 + 0.25 * 0.4)
    np.testing.assert_allclose(loss, error + 0.1 * divergence - 0.5 * verdict + hinge, rtol=1e-6)
    for name, value in (("error", error), ("divergence", divergence), ("verdict", verdict),
                        ("discriminator", hinge)):  # fmt: skip
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6)


def test_the_two_games_do_not_leak_into_each_other():
    grads = jax.grad(lambda p: mean_loss(game(), p))(PARAMS)
    # Of the autoencoder: its error's, less D's slope. The hinge of what is made has no part in it.
    np.testing.assert_allclose(grads["a"], 2 * (0.5 - 1) * 0.8**2 - 0.5 * 0.25 * 0.8, rtol=1e-6)
    # Of D: what is made less what is real. The autoencoder's verdict has no part in it.
    np.testing.assert_allclose(grads["b"], 0.4 - 0.8, rtol=1e-6)
    # They move against each other: on their own terms, a step down of one is a step up of the
    # other's.
    verdict = jax.grad(lambda p: -jnp.mean(p["b"] * p["a"] * BATCH["x"]))(PARAMS)
    hinge_made = 0.8 * PARAMS["a"]
    assert verdict["b"] * hinge_made < 0


def test_before_its_start_the_discriminator_is_neither_trained_nor_heard():
    grads = jax.grad(lambda p: mean_loss(game(start=5), p, step=4))(PARAMS)
    assert grads["b"] == 0
    np.testing.assert_allclose(grads["a"], 2 * (0.5 - 1) * 0.8**2, rtol=1e-6)
    at = jax.grad(lambda p: mean_loss(game(start=5), p, step=5))(PARAMS)
    assert at["b"] != 0


def test_training_lowers_the_loss_and_all_of_it_is_trained(small):
    small.autoencoder.discriminator_weight = 0.05
    small.autoencoder.discriminator_start = 3
    small.autoencoder.discriminator_width = 8
    config.validate(small)
    parts = build.run(small)
    records = sources.synthetic((8, 8, 3), 4, "train")
    step = programs.compiled_step(parts, records.dtype)
    state = parts.fresh_state()
    before = jax.device_get(state.params)
    errors, judged = [], []
    batches = build.train_loader(small, records, parts.mesh).iterate(0)
    for _ in range(20):
        state, metrics = step(state, next(batches))
        errors.append(float(metrics["error"]))
        judged.append(jax.device_get(state.params)[autoencoding.DISCRIMINATOR])
    assert np.mean(errors[-3:]) < 0.8 * errors[0]
    same = jax.tree.map(np.array_equal, before[autoencoding.DISCRIMINATOR], judged[2])
    assert all(jax.tree.leaves(same))  # steps 0, 1, 2
    moved = jax.tree.map(
        lambda a, b: not np.array_equal(a, b), before, jax.device_get(state.params)
    )
    assert all(jax.tree.leaves(moved))
    found = parts.task.heldout(sources.synthetic((8, 8, 3), 4, "heldout"), parts.mesh, 0)(
        state.ema, lambda: None
    )
    assert found["heldout_examples"] == 64 and np.isfinite(found["psnr"])


@pytest.mark.slow
def test_features_pull_the_reconstruction_to_what_it_is_of(small):
    distance = autoencoding._perceptual(small)
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.uniform(-1, 1, (2, 8, 8, 3)), jnp.float32)
    y = jnp.clip(x + 0.5 * draw.standard_normal(x.shape), -1, 1).astype(jnp.float32)
    found, slope = jax.jit(jax.value_and_grad(lambda y: jnp.sum(distance(x, y))))(y)
    np.testing.assert_allclose(distance(x, x), 0, atol=1e-6)
    assert found > 0.01
    nearer = y - 0.01 * slope / jnp.abs(slope).max()
    assert jnp.sum(distance(x, nearer)) < found


def test_the_sampler_reconstructs_and_takes_no_option_of_a_diffusion(small):
    parts = build.run(small)
    heldout = sources.synthetic((8, 8, 3), 4, "heldout")
    sampler = parts.task.sampler(parts.mesh, steps=None)
    given = parts.task.prompts(np.arange(3), lambda: heldout)
    np.testing.assert_array_equal(given["x"][1], heldout.x[64 // 3])
    params = parts.fresh_state().params
    x = sampler(params, np.arange(3), given)
    wanted = parts.apply(params, given["x"] / np.float32(127.5) - 1)
    np.testing.assert_allclose(x, wanted, atol=1e-5)
    with pytest.raises(ValueError, match="without steps"):
        parts.task.sampler(parts.mesh, steps=3)
    with pytest.raises(ValueError, match="task is autoencoder, and this is of diffusions"):
        _ = parts.path


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"autoencoder.name": "taef2"}, "autoencoder.name is taef2.*choose kl"),
        ({"autoencoder.channel_factors": (1, 1, 1, 1, 1)}, "at most 4 levels"),
        ({"autoencoder.channel_factors": (1, 0)}, "positive whole numbers"),
        ({"mesh.context": 2}, "mesh.context is 2, and task=autoencoder divides the batch alone"),
        ({"optim.sensitivity_penalty": 0.1}, "optim.sensitivity_penalty"),
        ({"data.shape": (4, 8, 8, 3), "autoencoder.perceptual_weight": 1.0}, "for pictures"),
        ({"task": "diffusion", "autoencoder.name": "kl"}, "give the workdir of its run"),
        ({"task": "diffusion", "autoencoder.name": "taef2"}, "latents of autoencoder.name=taef2"),
        (
            {"task": "diffusion", "autoencoder.name": "taef2", "data.shape": (8, 8, 32),
             "data.flip": True},
            "mirrored latents",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(small, changes, says):
    with small.ignore_type():
        for field, value in changes.items():
            *group, name = field.split(".")
            (small[group[0]] if group else small)[name] = value
    with pytest.raises(ValueError, match=says):
        config.validate(small)


def test_fields_of_a_diffusion_are_told_to_be_idle(small):
    small.model.depth, small.autoencoder.encoded = 3, "x"
    assert config.idle_fields(small) == [
        "autoencoder.encoded='x' is not read with task='autoencoder'",
        "model.depth=3 is not read with task='autoencoder'",
    ]
