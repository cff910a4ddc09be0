"""Attention whose weights are never held as a whole: keys in chunks, the softmax summed as they
pass (Milakov & Gimelshein, arXiv 1805.02867; Rabe & Staats, arXiv 2112.05682), its derivative from
the kept log-sum-exp (Dao et al., arXiv 2205.14135). On a mesh axis that divides the tokens, the
chunks of other devices come round a ring (Liu et al., arXiv 2310.01889). Memory is linear in the
tokens of a device.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from nrdm_jax.signatures import Array

CHUNK = 1024  # keys of a chunk, at most


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def attend(q_BHNK: Array, k_BHMK: Array, v_BHMK: Array, axis: str | None = None) -> Array:
    """softmax(q k^T / sqrt(K)) v -> (B, H, N, K) in the type of v; sums and softmax in float32.

    Args:
      q_BHNK, k_BHMK, v_BHMK: this device's part, where `axis` divides N and M.
      axis: of the mesh, within `shard_map`; every device has as many tokens.
    """
    return _forward(q_BHNK, k_BHMK, v_BHMK, axis)[0]


def _forward(q, k, v, axis):
    scale = q.shape[-1] ** -0.5

    def add(carry, chunk):
        """One chunk of keys into the sums o of weighted values and l of weights, both relative to
        exp(m)."""
        o, m, l = carry  # noqa: E741
        k, v = chunk
        logits = jnp.einsum("bhnk,bhmk->bhnm", q * scale, k, preferred_element_type=jnp.float32)
        new = jnp.maximum(m, logits.max(axis=-1))
        p = jnp.exp(logits - new[..., None])
        shrunk = jnp.exp(m - new)
        o = o * shrunk[..., None] + jnp.einsum(
            "bhnm,bhmk->bhnk", p.astype(v.dtype), v, preferred_element_type=jnp.float32
        )
        return (o, new, l * shrunk + p.sum(axis=-1)), None

    start = (
        jnp.zeros(q.shape, jnp.float32),
        jnp.full(q.shape[:-1], -jnp.inf),
        jnp.zeros(q.shape[:-1]),
    )
    o, m, l = _round(  # noqa: E741
        lambda carry, kv, _: (lax.scan(add, carry, jax.tree.map(_chunks, kv))[0], None),
        start,
        (k, v),
        axis,
    )[0]
    out = (o / l[..., None]).astype(v.dtype)
    return out, (q, k, v, out, m + jnp.log(l))


def _backward(axis, kept, d_out):
    q, k, v, out, lse = kept
    scale = q.shape[-1] ** -0.5
    d_out = d_out.astype(jnp.float32)
    # sum_m p dp of each query, by which the softmax's derivative is p (dp - sum).
    inner = jnp.sum(d_out * out.astype(jnp.float32), axis=-1)
    d_half = d_out.astype(v.dtype)

    def pull_back(dq, chunk):
        k, v = chunk
        logits = jnp.einsum("bhnk,bhmk->bhnm", q * scale, k, preferred_element_type=jnp.float32)
        p = jnp.exp(logits - lse[..., None])
        dv = _product("bhnm,bhnk->bhmk", p.astype(v.dtype), d_half)
        dp = _product("bhnk,bhmk->bhnm", d_half, v)
        ds = (p * (dp - inner[..., None])).astype(q.dtype)
        dq = dq + _product("bhnm,bhmk->bhnk", ds, k)
        return dq, (_product("bhnm,bhnk->bhmk", ds, q), dv)

    def visit(dq, kv, sums):
        dq, parts = lax.scan(pull_back, dq, jax.tree.map(_chunks, kv))
        whole = jax.tree.map(_joined, parts)
        return dq, whole if sums is None else jax.tree.map(jnp.add, sums, whole)

    dq, (dk, dv) = _round(visit, jnp.zeros(q.shape, jnp.float32), (k, v), axis)
    return (dq * scale).astype(q.dtype), (dk * scale).astype(k.dtype), dv.astype(v.dtype)


attend.defvjp(_forward, _backward)


def _product(formula: str, a: Array, b: Array) -> Array:
    return jnp.einsum(formula, a, b, preferred_element_type=jnp.float32)


def _round(visit: Callable, carry: Any, kv: Any, axis: str | None) -> tuple[Any, Any]:
    """Visits every device's keys and values: carry, sums <- visit(carry, kv, sums).

    The sums belong to the keys: they go round with them, and are back home at the end. The next
    keys are asked for before the present ones are used, so that the transfer can hide behind them.
    """
    devices = 1 if axis is None else lax.axis_size(axis)

    def passed_on(tree):
        pairs = [(i, (i + 1) % devices) for i in range(devices)]
        return jax.tree.map(lambda x: lax.ppermute(x, axis, pairs), tree)

    def step(state, _):
        carry, kv, sums = state
        following = passed_on(kv)
        carry, sums = visit(carry, kv, sums)
        return (carry, following, passed_on(sums)), None

    sums = None
    if devices > 1:
        shapes = jax.eval_shape(visit, carry, kv, None)[1]
        sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        (carry, kv, sums), _ = lax.scan(step, (carry, kv, sums), length=devices - 1)
    carry, sums = visit(carry, kv, sums)
    return carry, passed_on(sums) if devices > 1 else sums


def _chunks(x_BHMK: Array) -> Array:
    """(chunks, B, H, M / chunks, K); whole where no number of keys up to CHUNK divides well."""
    count = x_BHMK.shape[2]
    size = max(s for s in range(1, min(count, CHUNK) + 1) if count % s == 0)
    if size < min(count, CHUNK) // 8:
        size = count
    b, h, _, k = x_BHMK.shape
    return x_BHMK.reshape(b, h, count // size, size, k).transpose(2, 0, 1, 3, 4)


def _joined(x: Array) -> Array:
    """The inverse of `_chunks`."""
    chunks, b, h, size, k = x.shape
    return x.transpose(1, 2, 0, 3, 4).reshape(b, h, chunks * size, k)
