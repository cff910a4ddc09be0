"""Scaled dot-product attention (Vaswani et al., arXiv 1706.03762, eq. 1), heads first."""

import jax
import jax.numpy as jnp

from nrdm_jax.signatures import Array


def attend(q_BHNK: Array, k_BHMK: Array, v_BHMK: Array, mask_BM: Array | None = None) -> Array:
    """softmax(q k^T / sqrt(K)) v -> (B, H, N, K) in the inputs' type; the softmax in float32.

    Keys where `mask_BM` is False get no weight; where it is False for all, the result is 0.
    """
    scale = q_BHNK.shape[-1] ** -0.5
    logits = jnp.einsum(
        "bhnk,bhmk->bhnm", q_BHNK * scale, k_BHMK, preferred_element_type=jnp.float32
    )
    if mask_BM is None:
        weights = jax.nn.softmax(logits, axis=-1)
    else:
        weights = jax.nn.softmax(logits, axis=-1, where=mask_BM[:, None, None, :])
        weights = jnp.where(mask_BM.any(axis=1)[:, None, None, None], weights, 0.0)
    return jnp.einsum("bhnm,bhmk->bhnk", weights.astype(v_BHMK.dtype), v_BHMK)
