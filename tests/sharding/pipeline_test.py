"""A pipeline computes what one device would, whatever its schedule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax.sharding import axes, pipeline, rules
from nrdm_jax.sharding.mesh import make_mesh

BLOCKS, BATCH, WIDTH = 16, 16, 4


def stage(carry, weights):
    """Blocks z <- z + tanh(z w + c); what they see of an example, c, goes with it."""

    def block(carry, w):
        z, c = carry
        new = z + jnp.tanh(z @ w + c[:, None])
        return (new, c), jnp.mean(new**2)

    return jax.lax.scan(block, carry, weights)


def problem():
    keys = jax.random.split(jax.random.key(0), 3)
    z = jax.random.normal(keys[0], (BATCH, 3, WIDTH))
    c = jax.random.normal(keys[1], (BATCH, WIDTH))
    return (z, c), 0.1 * jax.random.normal(keys[2], (BLOCKS, WIDTH, WIDTH))


def results(run, carry, weights):
    """Value, ys, and the gradient with respect to everything."""

    def loss(carry, weights):
        (z, c), ys = run(carry, weights)
        return jnp.sum(jnp.sin(z)), (z, c, ys)

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(carry, weights)


@pytest.mark.parametrize(
    ("mesh", "micro_batches", "repeats"),
    [
        ({"stage": 8}, 0, 1),
        ({"stage": 8}, 2, 1),
        ({"stage": 4, "data": 2}, 8, 1),
        ({"stage": 4, "fsdp": 2}, 4, 2),
        ({"stage": 2, "data": 2, "fsdp": 2}, 4, 4),
        ({"stage": 8}, 16, 2),
    ],
    ids=str,
)
def test_stages_compute_what_one_device_does(mesh, micro_batches, repeats):
    carry, weights = problem()
    expected = results(stage, carry, weights)
    run = functools.partial(pipeline.run, stage, micro_batches=micro_batches, repeats=repeats)
    with axes.use(make_mesh({"data": 1, **mesh}), rules.RULES):
        found = results(run, carry, weights)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-6 * np.abs(b).max())


def program(mesh, **schedule):
    carry, weights = problem()
    with axes.use(make_mesh({"data": 1, **mesh}), rules.RULES):
        run = jax.jit(lambda carry, weights: pipeline.run(stage, carry, weights, **schedule))
        return run.lower(carry, weights).compile().as_text()


def test_stages_give_on_to_their_neighbours():
    assert "collective-permute" in program({"stage": 8})


@pytest.mark.parametrize(
    ("mesh", "schedule", "words"),
    [
        ({"stage": 8}, {"repeats": 3}, "do not divide the 16 blocks"),
        ({"stage": 8}, {"micro_batches": 3}, "does not divide a batch of 16"),
        ({"stage": 8}, {"micro_batches": 4, "repeats": 2}, "fewer than mesh.stage=8"),
    ],
    ids=str,
)
def test_what_cannot_be_divided_is_refused(mesh, schedule, words):
    with pytest.raises(ValueError, match=words):
        program(mesh, **schedule)


def test_without_stages_there_is_one():
    assert pipeline.stages() == 1
    with axes.use(make_mesh({"data": 2, "stage": 4}), rules.RULES):
        assert pipeline.stages() == 4
