"""What is known of an example at each place, which a network sees beside x_t as further channels:
a segmentation, the first frames of a clip, all but a box.

What is known of the example itself is [m x0, m], m = 1 where it is known (the masked image and the
mask, as in Rombach et al., arXiv 2112.10752, section 4.5): K = C + 1. Losses are then means over
the other places, which are all that a network can be wrong about.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from nrdm_jax.diffusion.schedules import broadcast
from nrdm_jax.signatures import Array, Batch


@dataclasses.dataclass(frozen=True)
class See:
    """(batch, x0 (B, *S, C), keys (B,)) -> seen (B, *S, K) float32.

    Attributes:
      function: does it.
      itself: whether it is known of the example itself, [m x0, m].
    """

    function: Callable[[Batch, Array, Array], Array]
    itself: bool

    def __call__(self, batch: Batch, x0: Array, keys_B: Array) -> Array:
        return self.function(batch, x0, keys_B)


def look(
    see: See | None, batch: Batch, x0: Array, keys_B: Array
) -> tuple[Array | None, Array | None]:
    """(seen, 1 where the example itself is not (B, *S, 1)), None each where there is no such."""
    if see is None:
        return None, None
    seen = see(batch, x0, keys_B)
    return seen, 1.0 - seen[..., -1:] if see.itself else None


def segmentation(classes: int) -> See:
    """The class at each place, batch["segmentation"] (B, *S) integers, as K = `classes` channels
    of 0 and 1. Integers that are no class are no channel; `data.sources` refuses them."""

    def see(batch: Batch, x0: Array, keys_B: Array) -> Array:
        return jax.nn.one_hot(batch["segmentation"], classes, dtype=jnp.float32)

    return See(see, itself=False)


def first_frames(count: int) -> See:
    """The first so many of the first axis."""

    def see(batch: Batch, x0: Array, keys_B: Array) -> Array:
        frames = jnp.arange(x0.shape[1]) < count
        return _of(x0, jnp.broadcast_to(frames.reshape(1, -1, *(1,) * (x0.ndim - 2)),
                                        (*x0.shape[:-1], 1)))  # fmt: skip

    return See(see, itself=True)


def around_a_box(least: float = 0.25, most: float = 0.75) -> See:
    """All but a box, of which each side is such a share of its axis, at a random place."""

    def see(batch: Batch, x0: Array, keys_B: Array) -> Array:
        axes = x0.ndim - 2

        def corners(key):
            size, place = jax.random.uniform(key, (2, axes))
            size = least + (most - least) * size
            return size, place * (1.0 - size)

        size_BA, first_BA = jax.vmap(corners)(keys_B)
        inside = jnp.ones((*x0.shape[:-1], 1), bool)
        for axis in range(axes):
            length = x0.shape[1 + axis]
            at = (jnp.arange(length) + 0.5) / length
            at = at.reshape(*(1,) * (1 + axis), length, *(1,) * (axes - axis))
            low = broadcast(first_BA[:, axis], x0)
            inside = inside & (at >= low) & (at < low + broadcast(size_BA[:, axis], x0))
        return _of(x0, ~inside)

    return See(see, itself=True)


def _of(x0: Array, known: Array) -> Array:
    """[m x0, m] for a mask (B, *S, 1)."""
    m = known.astype(jnp.float32)
    return jnp.concatenate([jnp.where(known, x0, 0.0), m], axis=-1)


def completed(x: Array, seen: Array) -> Array:
    """Samples (B, *S, C) with what is known of them, [m x0, m], in its place."""
    return jnp.where(seen[..., -1:] > 0.5, seen[..., :-1], x)


def mean_over(values: Array, where: Array | None) -> Array:
    """(B, *S, C) -> (B,): over the places that count, all or those of `where` (B, *S, 1), 0 or
    1."""
    axes = tuple(range(1, values.ndim))
    if where is None:
        return jnp.mean(values, axis=axes)
    count = jnp.sum(where, axis=axes) * values.shape[-1]
    return jnp.sum(values * where, axis=axes) / jnp.maximum(count, 1.0)
