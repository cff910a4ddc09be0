"""Positions of grids of several sizes: one network's, at every shape that it is trained at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax import networks
from nrdm_jax.models import positions
from nrdm_jax.models.dit import DiT

TABLES = {
    "sincos": lambda grid, *reference: positions.sincos(grid, 24, *reference),
    "rotary": lambda grid, *reference: positions.rotary(grid, 24, *reference),
}


def plain(name, grid):
    """By the formulas, of whole coordinates."""
    frequencies = 24 // (2 * len(grid))
    omega = 10_000.0 ** -(np.arange(frequencies) / frequencies)
    parts = []
    for coordinate in np.meshgrid(*map(np.arange, grid), indexing="ij"):
        angle = coordinate.reshape(-1, 1) * omega
        parts += [np.sin(angle), np.cos(angle)] if name == "sincos" else [angle]
    return np.concatenate(parts, axis=1).astype(np.float32)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("grid", [(7,), (8, 8), (3, 5, 7), (1, 4)])
def test_the_reference_s_own_positions_are_whole_numbers_to_the_bit(name, grid):
    expected = plain(name, grid)
    for table in (TABLES[name](grid), TABLES[name](grid, grid)):
        np.testing.assert_array_equal(table[:, : expected.shape[1]], expected)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("grid", [(4, 4), (16, 3), (2, 11)])
def test_a_grid_has_the_ends_of_its_reference_and_lies_evenly_between(name, grid):
    reference = (8, 6)
    ours = TABLES[name](grid, reference).reshape(*grid, -1)
    theirs = TABLES[name](reference).reshape(*reference, -1)
    corners = np.ix_((0, -1), (0, -1))
    np.testing.assert_array_equal(ours[corners], theirs[corners])
    for axis, places in enumerate(positions.coordinates(grid, reference)):
        steps = np.diff(places, axis=axis)
        np.testing.assert_allclose(steps, (reference[axis] - 1) / (grid[axis] - 1), rtol=1e-12)


def test_every_second_frame_of_a_clip_is_where_it_was():
    # 5 of 9 frames: 0, 2, 4, 6, 8.
    few, many = (positions.sincos((t, 3), 24, (9, 3)).reshape(t, 3, 24) for t in (5, 9))
    np.testing.assert_allclose(few, many[::2], atol=1e-6)


def test_one_token_is_in_the_middle_and_many_need_a_span():
    ((middle,),) = positions.coordinates((1,), (9,))
    assert middle == 4
    with pytest.raises(ValueError, match=r"3 tokens have no places of their own"):
        positions.coordinates((3, 2), (1, 2))
    with pytest.raises(ValueError, match="has no positions on the axes"):
        positions.coordinates((3, 2), (3,))


def arguments(shape):
    x = jax.random.normal(jax.random.key(0), (2, *shape))
    return x, jnp.asarray([0.2, 0.7]), {"label": jnp.asarray([0, 1])}


NETWORKS = {
    "dit": {},
    "rotary": {"positions": "rotary"},
    "factorised": {"attention": "factorised", "positions": "rotary"},
    "uvit": {"name": "uvit"},
    "unet": {"name": "unet", "channel_factors": (1, 2), "attention_at": (2,), "patch": (2,)},
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_one_network_is_of_every_shape(tiny_config, kind):
    c = tiny_config
    c.model.update(NETWORKS[kind])
    init, apply = networks.model(c)
    params = jax.eval_shape(init, jax.random.key(0))
    for shape in ((8, 16, 3), (16, 8, 3)):
        other = networks.network(c).clone(shape=shape)
        args = arguments(shape)
        theirs = jax.eval_shape(other.init, jax.random.key(0), *args)["params"]
        assert jax.tree.map(lambda a: a.shape, theirs) == jax.tree.map(lambda a: a.shape, params)
        assert jax.eval_shape(apply, params, *args).shape == (2, *shape)


@pytest.mark.parametrize("kind", ["sincos", "rotary"])
def test_a_network_reads_the_positions_that_its_reference_says(kind):
    settings = dict(patch=2, depth=1, width=24, heads=1, num_classes=3, positions=kind)
    args = arguments((4, 8, 3))
    own, spanning = (DiT(shape=(4, 8, 3), reference=r, **settings) for r in ((), (8, 4, 3)))
    same = DiT(shape=(4, 8, 3), reference=(4, 8, 3), **settings)
    shapes = jax.eval_shape(own.init, jax.random.key(0), *args)
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: draw.normal(0, 0.3, leaf.shape).astype("f"), shapes)
    out = own.apply(params, *args)
    np.testing.assert_array_equal(out, same.apply(params, *args))
    assert float(jnp.abs(out - spanning.apply(params, *args)).max()) > 1e-3
