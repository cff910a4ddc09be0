"""Scaled dot-product attention (Vaswani et al., arXiv 1706.03762, eq. 1), heads first."""

import jax
import jax.numpy as jnp

from nrdm_jax.signatures import Array


def attend(q_BHNK: Array, k_BHMK: Array, v_BHMK: Array) -> Array:
    """softmax(q k^T / sqrt(K)) v -> (B, H, N, K) in the inputs' type; the softmax in float32."""
    scale = q_BHNK.shape[-1] ** -0.5
    logits = jnp.einsum(
        "bhnk,bhmk->bhnm", q_BHNK * scale, k_BHMK, preferred_element_type=jnp.float32
    )
    weights = jax.nn.softmax(logits, axis=-1).astype(v_BHMK.dtype)
    return jnp.einsum("bhnm,bhmk->bhnk", weights, v_BHMK)
