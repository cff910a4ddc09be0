"""Memory modes: what a scan over blocks keeps for its backward pass.

| mode | kept for L blocks | computed |
|---|---|---|
| none | everything | 1 forward |
| remat | every block's input, and what the policy names | 2 forwards |
| sqrt | about 2 sqrt(L) inputs (Chen et al., arXiv 1604.06174) | 3 forwards |
| offload | nothing on the device: inputs go to pinned host memory | 2 forwards |
| reversible | the stack's output (see `reversible`) | 2 forwards |

Which stack may use which is `config.validate`'s to say; what depends on the platform or on the
program is said here.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from nrdm_jax.sharding import axes

# (carry, x) -> (carry, y): the body of a scan. A carry is a tuple of arrays.
Body = Callable[[Any, Any], tuple[Any, Any]]

# What `remat` keeps besides a block's input.
POLICIES = {
    "nothing": jax.checkpoint_policies.nothing_saveable,
    # the output of each residual branch: what is after the gate needs no branch computed again
    "branches": jax.checkpoint_policies.save_only_these_names("branch"),
    # results of products with weights, but not attention's weights and their products
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
}
_INPUT = "block_input"
# Forward passes of a step in each mode.
FORWARDS = {"none": 1, "remat": 2, "offload": 2, "reversible": 2, "sqrt": 3}


def scan(
    body: Body,
    carry: Any,
    xs: Any,
    mode: str = "none",
    policy: str = "nothing",
    reverse: bool = False,
):
    """`jax.lax.scan(body, carry, xs, reverse=reverse)` in a memory mode.

    Args:
      body: one block.
      carry: a tuple of arrays.
      xs: a tree whose every leaf has the leading axis of the blocks.
      mode: none, remat, sqrt or offload.
      policy: a key of `POLICIES`, for remat.
      reverse: from the last x to the first.

    Raises:
      ValueError: the policy keeps no more than `nothing` for this body, or all that `none` does; or
        the platform has no host memory apart from its own.
    """
    if mode == "none":
        return jax.lax.scan(body, carry, xs, reverse=reverse)
    if mode == "remat":
        _check_policy(body, carry, xs, policy)
        return jax.lax.scan(checkpoint(body, POLICIES[policy]), carry, xs, reverse=reverse)
    if mode == "sqrt":
        return _two_level_scan(checkpoint(body), carry, xs, reverse)
    if mode == "offload":
        check_offload(axes.platform())
        return jax.lax.scan(_offloaded(body), carry, xs, reverse=reverse)
    raise ValueError(f"unknown memory mode {mode!r}")


def check_offload(platform: str) -> None:
    """Raises:
    ValueError: the platform accepts pinned_host and silently keeps everything where it is.
    """
    if platform == "cpu":
        raise ValueError(
            "model.memory is offload, which needs a TPU or a GPU: a CPU has no other memory to "
            "move activations to; choose remat, sqrt or reversible"
        )


def checkpoint(body: Body, policy=POLICIES["nothing"]) -> Body:
    """The body, of which the backward pass gets what the policy keeps."""
    # Inside a scan nothing can be merged across the barrier that prevent_cse would insert.
    return jax.checkpoint(body, policy=policy, prevent_cse=False)


def _offloaded(body: Body) -> Body:
    def named(carry, x):
        return body(tuple(checkpoint_name(z, _INPUT) for z in carry), x)

    policy = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    )
    return checkpoint(named, policy)


def _two_level_scan(body: Body, carry: Any, xs: Any, reverse: bool):
    """Groups of about sqrt(L) blocks: only the groups' inputs are kept, and while one group goes
    backwards, its blocks' inputs."""
    length = jax.tree.leaves(xs)[0].shape[0]
    root = math.isqrt(length)
    inner = min(range(root, 2 * root), key=lambda size: length % size)
    grouped = length // inner * inner
    group = checkpoint(lambda c, x: jax.lax.scan(body, c, x, reverse=reverse), POLICIES["nothing"])

    def head(x):
        x = x if grouped == length else x[:grouped]
        return x.reshape(grouped // inner, inner, *x.shape[1:])

    def groups(carry):
        carry, ys = jax.lax.scan(group, carry, jax.tree.map(head, xs), reverse=reverse)
        return carry, jax.tree.map(lambda y: y.reshape(grouped, *y.shape[2:]), ys)

    def rest(carry):
        return jax.lax.scan(
            body, carry, jax.tree.map(lambda x: x[grouped:], xs), reverse=reverse
        )  # fmt: skip

    if grouped == length:
        return groups(carry)
    if reverse:
        carry, last = rest(carry)
        carry, ys = groups(carry)
    else:
        carry, ys = groups(carry)
        carry, last = rest(carry)
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ys, last)


def _check_policy(body: Body, carry: Any, xs: Any, policy: str) -> None:
    if policy == "nothing":
        return
    x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), xs)
    kept = {
        name: _kept_bytes(f, carry, x)
        for name, f in {
            "none": body,
            "nothing": checkpoint(body),
            policy: checkpoint(body, POLICIES[policy]),
        }.items()
    }
    for same in ("nothing", "none"):
        if kept[policy] == kept[same]:
            mode = "model.memory=none" if same == "none" else "model.remat_policy=nothing"
            raise ValueError(
                f"model.remat_policy is {policy!r}, which changes nothing for this block: it keeps "
                f"the {kept[same]:,} bytes of {mode}; choose that, or one of {', '.join(POLICIES)}"
            )


def _kept_bytes(body: Body, carry: Any, x: Any) -> int:
    """Bytes that the backward pass of one block gets from its forward pass, by shapes alone."""
    shapes = jax.eval_shape(lambda c, x: jax.vjp(body, c, x)[1], carry, x)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
