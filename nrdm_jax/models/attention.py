"""Scaled dot-product attention (Vaswani et al., arXiv 1706.03762, eq. 1), heads first, and how it
is computed: a kernel of `KERNELS`, chosen by config.

| kernel | weights held | tokens over the mesh axis `context` |
|---|---|---|
| xla | all | keys and values are gathered |
| blockwise | a chunk's | keys and values are gathered |
| ring | a chunk's | keys and values go round, see `online_attention` |
| ulysses | a chunk's | tokens become heads by all-to-all, and back (arXiv 2309.14509) |
| splash, cudnn, tokamax | a block's | refused; see `fused_attention` |
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from nrdm_jax.models import fused_attention, online_attention
from nrdm_jax.sharding import axes
from nrdm_jax.signatures import Array

AXES = ("activation_batch", "activation_heads", "activation_length", None)
# Of groups of tokens (B, G, H, N, K), each whole on a device.
GROUPED = ("activation_batch", "activation_length", "activation_heads", None, None)


def attend(q_BHNK: Array, k_BHMK: Array, v_BHMK: Array, mask_BM: Array | None = None) -> Array:
    """softmax(q k^T / sqrt(K)) v -> (B, H, N, K) in the inputs' type; the softmax in float32. Any
    number of leading axes in the place of B, where there is no mask.

    Keys where `mask_BM` is False get no weight; where it is False for all, the result is 0.
    """
    scale = q_BHNK.shape[-1] ** -0.5
    logits = jnp.einsum(
        "...hnk,...hmk->...hnm", q_BHNK * scale, k_BHMK, preferred_element_type=jnp.float32
    )
    if mask_BM is None:
        weights = jax.nn.softmax(logits, axis=-1)
    else:
        weights = jax.nn.softmax(logits, axis=-1, where=mask_BM[:, None, None, :])
        weights = jnp.where(mask_BM.any(axis=1)[:, None, None, None], weights, 0.0)
    return jnp.einsum("...hnm,...hmk->...hnk", weights.astype(v_BHMK.dtype), v_BHMK)


def blockwise(q: Array, k: Array, v: Array) -> Array:
    """As `attend`, see `online_attention.attend`."""
    return _ungrouped(online_attention.attend)(q, k, v)


def _ungrouped(kernel: Callable[..., Array]) -> Callable[..., Array]:
    """The kernel, for any number of leading axes in the place of B."""

    def several(*qkv: Array) -> Array:
        flat = (x.reshape(-1, *x.shape[-3:]) for x in qkv)
        return kernel(*flat).reshape(qkv[0].shape)

    return several


def _divided(local: Callable[..., Array]) -> Callable[..., Array]:
    """A kernel that runs on each device's part of the tokens: `local` gets the mesh axis that
    divides them, None where there is no mesh."""

    @functools.wraps(local)
    def kernel(q_BHNK: Array, k_BHNK: Array, v_BHNK: Array) -> Array:
        found = axes.current()
        if found is None:
            return local(q_BHNK, k_BHNK, v_BHNK, None)
        mesh, rules = found
        spec = axes.spec_of(AXES, rules)
        (axis,) = rules["activation_length"]
        return jax.shard_map(
            functools.partial(local, axis=axis),
            mesh=mesh,
            in_specs=(spec, spec, spec),
            out_specs=spec,
            check_vma=False,
        )(q_BHNK, k_BHNK, v_BHNK)

    return kernel


@_divided
def ring(q, k, v, axis):
    """Keys and values go round the devices that hold the tokens."""
    return online_attention.attend(q, k, v, axis)


@_divided
def ulysses(q, k, v, axis):
    """Each device gets all tokens of some heads, attends, and gives them back."""
    if axis is None:
        return online_attention.attend(q, k, v)
    q, k, v = (lax.all_to_all(x, axis, split_axis=1, concat_axis=2, tiled=True) for x in (q, k, v))
    out = online_attention.attend(q, k, v)
    return lax.all_to_all(out, axis, split_axis=2, concat_axis=1, tiled=True)


def _whole(local: Callable[..., Array]) -> Callable[..., Array]:
    """A kernel that no compiler can divide, run on each device's examples or groups, and heads, all
    their tokens being there."""

    @functools.wraps(local)
    def kernel(*qkv: Array) -> Array:
        found = axes.current()
        if found is None:
            return _ungrouped(local)(*qkv)
        mesh, rules = found
        spec = axes.spec_of(GROUPED if qkv[0].ndim > 4 else AXES, rules)
        return jax.shard_map(
            _ungrouped(local), mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False
        )(*qkv)

    return kernel


# (q, k, v) -> out, of self-attention: as many keys as queries and no mask.
KERNELS: dict[str, Callable[..., Array]] = {
    "xla": attend,
    "blockwise": blockwise,
    "ring": ring,
    "ulysses": ulysses,
    "splash": _whole(fused_attention.splash),
    "cudnn": _whole(fused_attention.cudnn),
    "tokamax": _whole(fused_attention.tokamax),
}
