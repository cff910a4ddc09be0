"""Held-out loss at fixed noise levels, averaged over exactly the held-out examples."""

from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from nrdm_jax.signatures import Array

# (params, batch, seeds (B,)) -> sums over the masked examples of the batch of the native loss and
# the x0 error at each level: (levels,), (levels,)
LevelSums = Callable[..., tuple[Array, Array]]


def bits_per_dim(
    bits_sums: Callable[..., tuple[Array, Array]],
    params: Any,
    batches: Callable[[], Iterable],
    poll: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Mean negative log2-likelihood of a number of an example, and the mean's standard error.

    Args:
      bits_sums: jitted, (params, batch, seeds) -> sums over the masked examples of their
        bits, and of the squares; the noise of an example is a function of its seed, here its
        number.
      params, batches, poll: as of `heldout_losses`.
    """
    total = square = 0.0
    count = position = 0
    for batch in batches():
        size = len(batch["label"])
        seeds = np.arange(position, position + size, dtype=np.uint32)
        poll()
        sums = bits_sums(params, batch, seeds)
        total, square = total + float(sums[0]), square + float(sums[1])
        count += int(jnp.sum(batch["mask"]))
        position += size
    mean = total / count
    variance = max(square / count - mean**2, 0.0)
    return {
        "bits_per_dim": mean,
        "bits_per_dim_error": (variance / count) ** 0.5,
        "bits_per_dim_examples": count,
    }


def heldout_losses(
    level_sums: LevelSums,
    params: Any,
    batches: Callable[[], Iterable],
    levels: tuple[float, ...],
    poll: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Mean native loss and x0 error, over all levels and at each.

    Args:
      level_sums: jitted; the noise of an example is a function of its seed, here its number.
      params: the weights, or whatever else `level_sums` takes first.
      batches: -> batches with `x`, `label` and `mask`, the last one padded.
      levels: log signal-to-noise ratios, for naming.
      poll: called before each batch, by all processes; may raise to stop.
    """
    loss = np.zeros(len(levels))
    error = np.zeros(len(levels))
    count = position = 0
    for batch in batches():
        size = len(batch["label"])
        seeds = np.arange(position, position + size, dtype=np.uint32)
        poll()
        sums = level_sums(params, batch, seeds)
        loss += np.asarray(sums[0], np.float64)
        error += np.asarray(sums[1], np.float64)
        count += int(jnp.sum(batch["mask"]))  # over all processes
        position += size
    values = {
        "heldout_loss": float(loss.mean() / count),
        "heldout_x0_error": float(error.mean() / count),
        "heldout_examples": count,
    }
    for level, at_level in zip(levels, loss / count, strict=True):
        values[f"heldout_loss/log_snr={level:g}"] = float(at_level)
    return values
