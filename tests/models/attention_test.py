"""Every kernel computes softmax(q k^T / sqrt(K)) v, and its derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax.models import online_attention
from nrdm_jax.models.attention import KERNELS, attend
from nrdm_jax.sharding import axes, rules
from nrdm_jax.sharding.mesh import make_mesh

SHAPE = (2, 4, 64, 8)  # B, H, N, K


def arguments(dtype=jnp.float32, shape=SHAPE):
    # Large logits, up to 130, so that a sum of exponentials that is not shifted would overflow.
    q, k, v, w = jax.random.normal(jax.random.key(0), (4, *shape))
    return (6.0 * q).astype(dtype), (6.0 * k).astype(dtype), v.astype(dtype), w


def value_and_gradient(kernel, q, k, v, w):
    def loss(q, k, v):
        out = kernel(q, k, v)
        return jnp.sum(out.astype(jnp.float32) * w), out

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)


def by_hand(q, k, v):
    logits = np.einsum("bhnk,bhmk->bhnm", *(np.asarray(x, np.float64) for x in (q, k)))
    logits /= np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhnm,bhmk->bhnk", weights, np.asarray(v, np.float64))


# cudnn needs a GPU; tests/ahead_test.py compiles for one.
@pytest.mark.parametrize("kernel", sorted(set(KERNELS) - {"cudnn"}))
def test_value_is_the_formula(kernel):
    q, k, v, _ = arguments()
    np.testing.assert_allclose(KERNELS[kernel](q, k, v), by_hand(q, k, v), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [7, 16, 64, 1000])
def test_chunks_change_nothing(monkeypatch, chunk):
    monkeypatch.setattr(online_attention, "CHUNK", chunk)
    q, k, v, w = arguments()
    found = value_and_gradient(KERNELS["blockwise"], q, k, v, w)
    expected = value_and_gradient(attend, q, k, v, w)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), found, expected
    )


MESHES = [{"context": 8}, {"data": 2, "context": 4}, {"context": 2, "tensor": 2, "fsdp": 2}]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("kernel", ["ring", "ulysses"])
def test_divided_tokens_change_nothing(kernel, mesh):
    q, k, v, w = arguments(shape=(2, 8, 64, 8))
    expected = value_and_gradient(attend, q, k, v, w)
    with axes.use(make_mesh({"data": 1, **mesh}), rules.RULES):
        found = value_and_gradient(KERNELS[kernel], q, k, v, w)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), found, expected
    )


@pytest.mark.parametrize("kernel", ["ring", "ulysses"])
def test_tokens_that_are_divided_are_not_gathered(kernel):
    q, k, v, w = arguments(shape=(2, 8, 64, 8))
    with axes.use(make_mesh({"data": 1, "context": 8}), rules.RULES):
        program = jax.jit(
            lambda q, k, v: jnp.sum(KERNELS[kernel](q, k, v) * w)
        ).lower(q, k, v).compile().as_text()  # fmt: skip
    moved = "collective-permute" if kernel == "ring" else "all-to-all"
    assert moved in program and "all-gather" not in program


FUSED = ["splash", "tokamax"]


@pytest.mark.parametrize("kernel", FUSED)
@pytest.mark.parametrize("tokens", [256, 66, 700])  # one block; padded; two, the last padded
def test_fused_kernels_are_the_plain_one(kernel, tokens):
    q, k, v, w = arguments(shape=(2, 4, tokens, 8))
    found = value_and_gradient(KERNELS[kernel], q, k, v, w)
    expected = value_and_gradient(attend, q, k, v, w)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), found, expected
    )


@pytest.mark.parametrize("kernel", FUSED)
def test_fused_kernels_get_the_heads_and_examples_of_a_device(kernel):
    q, k, v, w = arguments(shape=(4, 4, 32, 8))
    expected = value_and_gradient(attend, q, k, v, w)
    with axes.use(make_mesh({"data": 2, "fsdp": 2, "tensor": 2}), rules.RULES):
        found = value_and_gradient(KERNELS[kernel], q, k, v, w)
        program = jax.jit(KERNELS[kernel]).lower(q, k, v).compile().as_text()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), found, expected
    )
    assert "f32[4,4,32,8]" not in program.split("ENTRY")[0] and "all-gather" not in program


def test_fused_kernels_get_the_groups_of_a_device():
    q, k, v, _ = arguments(shape=(6, 4, 16, 8))
    grouped = [x.reshape(2, 3, 4, 16, 8) for x in (q, k, v)]
    with axes.use(make_mesh({"data": 2, "tensor": 4}), rules.RULES):
        out = jax.jit(KERNELS["splash"])(*grouped)
    np.testing.assert_allclose(out.reshape(6, 4, 16, 8), attend(q, k, v), rtol=1e-4, atol=1e-5)


def test_half_precision_is_as_good_as_that_of_xla():
    q, k, v, w = arguments(jnp.bfloat16)
    exact, errors = by_hand(q, k, v), {}
    for kernel in ("xla", "blockwise", *FUSED):
        (_, out), gradients = value_and_gradient(KERNELS[kernel], q, k, v, w)
        assert out.dtype == jnp.bfloat16 and all(g.dtype == jnp.bfloat16 for g in gradients)
        errors[kernel] = np.abs(np.asarray(out, np.float64) - exact).mean()
    assert max(errors.values()) < 1.2 * errors["xla"] < 0.01, errors


def test_groups_are_attended_apart():
    q, k, v, _ = arguments(shape=(6, 4, 16, 8))
    grouped = (x.reshape(2, 3, 4, 16, 8) for x in (q, k, v))
    out = KERNELS["blockwise"](*grouped)
    assert out.shape == (2, 3, 4, 16, 8)
    np.testing.assert_allclose(out.reshape(6, 4, 16, 8), attend(q, k, v), rtol=1e-4, atol=1e-5)


def test_memory_of_weights_is_that_of_a_chunk():
    """The whole matrix of weights, 4,096^2 numbers a head, is never there, forward or backward."""
    shape = jax.ShapeDtypeStruct((1, 1, 4096, 8), jnp.float32)

    def temporaries(kernel):
        gradient = jax.jit(jax.grad(lambda q, k, v: jnp.sum(kernel(q, k, v)), (0, 1, 2)))
        return gradient.lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes

    whole = 4096**2 * 4
    assert temporaries(attend) > whole
    assert temporaries(KERNELS["blockwise"]) < whole
