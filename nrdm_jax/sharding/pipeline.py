"""A stack of blocks divided over devices along its depth, micro-batches following one another.

Stage s holds blocks of its own; in each turn all stages work, each on another micro-batch, and give
what they have to the next one. A turn is one program for all stages: the stage is an axis of the
state, over which the mesh axis of the logical axis `layers` divides it, and giving on is a rotation
of it (GPipe, arXiv 1811.06965; as one program, GSPMD, arXiv 2105.04663, section 3.3). With
`repeats`, a micro-batch goes round all stages several times, each time through other blocks, and
the share of turns in which a stage idles falls as much: (S - 1) / (repeats * M + S - 1) for S
stages and M micro-batches (the circular schedule; Narayanan et al., arXiv 2104.04473, section 2.2).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nrdm_jax.sharding import axes
from nrdm_jax.sharding.axes import ANY, constrain

# (carry of a micro-batch, xs of the stage's blocks, (K, ...) each) -> (carry, ys (K, ...) each)
Stage = Callable[[Any, Any], tuple[Any, Any]]


def stages() -> int:
    """Stages of the mesh at hand, see `axes.use`; 1 outside it."""
    return axes.size("layers")


def run(
    stage: Stage, carry: Any, xs: Any, *, micro_batches: int = 0, repeats: int = 1
) -> tuple[Any, Any]:
    """What `stage(carry, xs)` would give, had one device all blocks.

    Args:
      stage: runs consecutive blocks; knows nothing of the others.
      carry: a tree whose every leaf has the leading axis of the examples (B, ...). All that a block
        needs of an example must be in it: it travels.
      xs: a tree whose every leaf has the leading axis of the blocks (L, ...).
      micro_batches: into which the examples are divided; 0: as many as there are stages.
      repeats: of the circular schedule. With more than one the blocks of a stage are not
        consecutive, so that the weights, which lie in the order of depth whatever the mesh, are
        laid out anew once a call.

    Returns:
      The carry after the last block, and ys (L, ...): means over the micro-batches.

    Raises:
      ValueError: blocks or examples cannot be divided, or with repeats there are fewer
        micro-batches than stages.
    """
    count = stages()
    micros = micro_batches or count
    length, batch = jax.tree.leaves(xs)[0].shape[0], jax.tree.leaves(carry)[0].shape[0]
    if length % (count * repeats):
        raise ValueError(
            f"mesh.stage is {count} and pipeline.repeats {repeats}, which do not divide the "
            f"{length} blocks"
        )
    if batch % micros:
        raise ValueError(
            f"pipeline.micro_batches is {micros}, which does not divide a batch of {batch}"
        )
    if repeats > 1 and micros < count:
        raise ValueError(
            f"pipeline.micro_batches is {micros}, fewer than mesh.stage={count}; with "
            "pipeline.repeats a micro-batch would be back at the first stage too early"
        )

    def by_stage(x):
        x = x.reshape(repeats, count, length // (count * repeats), *x.shape[1:]).swapaxes(0, 1)
        return constrain(x, "layers", *(ANY,) * (x.ndim - 1))

    def divided(x):
        # Micro-batch j takes examples j, j + M, ...: each device keeps what it has.
        x = x.reshape(batch // micros, micros, *x.shape[1:]).swapaxes(0, 1)
        return constrain(x, None, "activation_batch", *(ANY,) * (x.ndim - 2))

    def together(x):
        return x.swapaxes(0, 1).reshape(batch, *x.shape[2:])

    xs = jax.tree.map(by_stage, xs)
    numbers = jnp.arange(count)

    def turn(state, t):
        held, store = state
        # What is in store of micro-batch m: its input, then what each round made of it.
        entering = jax.tree.map(lambda s: s[t % micros], store)
        held = jax.tree.map(lambda h, e: _first_is(h, e, numbers), held, entering)
        held = jax.tree.map(_laid_out, held)
        if repeats == 1:
            blocks = jax.tree.map(lambda x: x[:, 0], xs)
        else:
            rounds = jnp.clip((t - numbers) // micros, 0, repeats - 1)
            blocks = jax.tree.map(lambda x: jax.vmap(lambda s, r: s[r])(x, rounds), xs)
        held, ys = jax.vmap(stage, spmd_axis_name=axes.mesh_axes("layers"))(held, blocks)
        leaving = t - (count - 1)
        store = jax.tree.map(
            lambda s, h: jnp.where(leaving >= 0, s.at[leaving % micros].set(h[-1]), s), store, held
        )
        held = jax.tree.map(lambda h: _laid_out(jnp.roll(h, 1, axis=0)), held)
        return (held, store), ys

    store = jax.tree.map(divided, carry)
    # Stages that wait for their first micro-batch work on real numbers, so that none is NaN.
    held = jax.tree.map(lambda s: jnp.broadcast_to(s[0], (count, *s.shape[1:])), store)
    turns = repeats * micros + count - 1
    (_, store), ys = jax.lax.scan(turn, (held, store), jnp.arange(turns))

    def of_blocks(y):
        """(turns, stages, K, ...) -> (L, ...), over the turns in which a stage did not idle."""
        r, m, s = np.ogrid[:repeats, :micros, :count]
        y = y[r * micros + m + s, s].mean(axis=1)
        return y.reshape(length, *y.shape[3:])

    return jax.tree.map(together, store), jax.tree.map(of_blocks, ys)


def _first_is(held, entering, numbers):
    first = (numbers == 0).reshape(-1, *(1,) * entering.ndim)
    return jnp.where(first, entering[None], held)


def _laid_out(x):
    return constrain(x, "layers", "activation_batch", *(ANY,) * (x.ndim - 2))
