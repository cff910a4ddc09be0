"""The branches of a transformer's units: what they attend to, and what changes nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax import trees
from nrdm_jax.models import blocks, positions
from nrdm_jax.models.conditioning import Condition

CONDITION = Condition(jax.random.normal(jax.random.key(9), (2, 6)), {})
GRID = (2, 3, 4)  # T, H, W
U = jax.random.normal(jax.random.key(0), (2, 24, 16))


def applied(branch, u=U, condition=CONDITION, of=None):
    """The branch of parameters drawn for `of`, by default itself."""
    variables = jax.jit((of or branch).init)(jax.random.key(1), u, condition)
    return branch.apply(variables, u, condition)


@pytest.mark.parametrize("grid", [(7,), (3, 5), (2, 3, 4)])
def test_rotary_products_depend_on_the_difference_of_places_only(grid):
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 12))
    angles = positions.rotary(grid, 12)
    count = angles.shape[0]
    many = [positions.rotate(jnp.broadcast_to(x, (1, 1, count, 12)), angles) for x in (q, k)]
    products = np.asarray(jnp.einsum("bhnk,bhmk->nm", *many))
    places = np.stack(np.unravel_index(np.arange(count), grid), -1)
    seen = {}
    for n in range(count):
        for m in range(count):
            difference = tuple(places[n] - places[m])
            assert seen.setdefault(difference, products[n, m]) == pytest.approx(
                products[n, m], abs=1e-5
            )
    assert len({round(float(v), 3) for v in seen.values()}) > len(seen) // 2
    np.testing.assert_allclose(  # turned, not stretched
        jnp.linalg.norm(many[0], axis=-1), jnp.full((1, 1, count), jnp.linalg.norm(q)), rtol=1e-5
    )


def test_tokens_that_are_no_patches_are_not_rotated():
    x = jax.random.normal(jax.random.key(0), (1, 2, 6, 8))
    angles = positions.rotary((4,), 8)
    out = positions.rotate(x, angles)
    np.testing.assert_array_equal(out[:, :, :2], x[:, :, :2])
    np.testing.assert_allclose(out[:, :, 2:], positions.rotate(x[:, :, 2:], angles))


def test_heads_too_narrow_to_rotate_are_refused():
    with pytest.raises(ValueError, match="heads of 4 channels cannot be rotated on 3 axes"):
        positions.rotary((2, 2, 2), 4)


@pytest.mark.parametrize("rotary", [False, True])
def test_factorised_attention_is_joint_attention_within_each_group(rotary):
    def attention(grid, *axes):
        return blocks.SelfAttention(16, 2, grid=grid, axes=axes, rotary=rotary, parent=None)

    clip = U.reshape(2, *GRID, 16)
    within = applied(attention(GRID, 1, 2)).reshape(clip.shape)
    for frame in range(GRID[0]):
        alone = applied(attention(GRID[1:]), clip[:, frame].reshape(2, -1, 16))
        np.testing.assert_allclose(within[:, frame].reshape(2, -1, 16), alone, rtol=1e-5, atol=1e-6)
    across = applied(attention(GRID, 0)).reshape(clip.shape)
    for h in range(GRID[1]):
        for w in range(GRID[2]):
            alone = applied(attention(GRID[:1]), clip[:, :, h, w])
            np.testing.assert_allclose(across[:, :, h, w], alone, rtol=1e-5, atol=1e-6)


def test_masked_text_is_text_that_is_not_there():
    text = jax.random.normal(jax.random.key(3), (2, 5, 7))
    branch = blocks.CrossAttention(16, 2, parent=None)

    def told(text, mask):
        return dataclasses.replace(CONDITION, text_BTE=text, text_mask_BT=mask)

    mask = jnp.arange(5)[None, :] < jnp.asarray([[3], [3]])
    short = applied(branch, condition=told(text[:, :3], jnp.ones((2, 3), bool)))
    np.testing.assert_allclose(
        applied(branch, condition=told(text, mask)), short, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(applied(branch, condition=told(text[:, :3], None)), short, rtol=1e-6)
    # padding holds no number that matters, not even one that is not finite's neighbour
    loud = jnp.where(mask[..., None], text, 1e30)
    np.testing.assert_allclose(
        applied(branch, condition=told(loud, mask)), short, rtol=1e-5, atol=1e-6
    )
    nothing = applied(branch, condition=told(text, jnp.zeros((2, 5), bool)))
    np.testing.assert_array_equal(nothing, jnp.zeros_like(nothing))


def test_qk_norm_makes_attention_blind_to_the_size_of_queries_and_keys():
    def scaled(factor, qk_norm):
        branch = blocks.SelfAttention(16, 2, qk_norm=qk_norm, grid=GRID, parent=None)
        variables = jax.jit(branch.init)(jax.random.key(1), U, CONDITION)
        params = dict(variables["params"])
        for name in ("query", "key"):
            params[f"{name}_kernel"] = factor * params[f"{name}_kernel"]
        return branch.apply({"params": params}, U, CONDITION)

    np.testing.assert_allclose(scaled(30.0, True), scaled(1.0, True), rtol=1e-3, atol=1e-4)
    assert np.abs(scaled(30.0, False) - scaled(1.0, False)).max() > 0.1


def test_swiglu_has_the_parameters_of_gelu_and_its_closed_form():
    def variables_of(activation):
        branch = blocks.Mlp(48, 4.0, activation, parent=None)
        u = jnp.ones((2, 3, 48))
        return branch, jax.jit(branch.init)(jax.random.key(0), u, CONDITION)["params"]

    kernels = {}
    for activation in ("gelu", "swiglu"):
        _, params = variables_of(activation)
        kernels[activation] = sum(
            x.size for path, x in trees.leaves_with_path(params)
            if path.endswith("kernel") and "norm" not in path
        )  # fmt: skip
    assert kernels["swiglu"] == kernels["gelu"]

    branch, params = variables_of("swiglu")
    u = jax.random.normal(jax.random.key(4), (2, 3, 48))
    y = (u - u.mean(-1, keepdims=True)) / jnp.sqrt(u.var(-1, keepdims=True) + 1e-6)
    a, b = y @ params["hidden"]["kernel"], y @ params["linear"]["kernel"]
    np.testing.assert_allclose(
        branch.apply({"params": params}, u, CONDITION),
        (a / (1 + jnp.exp(-a)) * b) @ params["out"]["kernel"],
        rtol=1e-4,
        atol=1e-5,
    )
