"""Held-out loss at fixed noise levels, averaged over exactly the held-out examples."""

from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from nrdm_jax.signatures import Array

# (params, x (B, *S, C), label (B,), mask (B,), seeds (B,)) -> sums over the masked examples of the
# native loss and the x0 error at each level: (levels,), (levels,)
LevelSums = Callable[..., tuple[Array, Array]]


def heldout_losses(
    level_sums: LevelSums,
    params: Any,
    batches: Callable[[], Iterable],
    levels: tuple[float, ...],
) -> dict[str, float]:
    """Mean native loss and x0 error, over all levels and at each.

    Args:
      level_sums: jitted; the noise of an example is a function of its seed, here its number.
      params: the weights, or whatever else `level_sums` takes first.
      batches: -> batches with `x`, `label` and `mask`, the last one padded.
      levels: log signal-to-noise ratios, for naming.
    """
    loss = np.zeros(len(levels))
    error = np.zeros(len(levels))
    count = position = 0
    for batch in batches():
        size = len(batch["label"])
        seeds = np.arange(position, position + size, dtype=np.uint32)
        sums = level_sums(params, batch["x"], batch["label"], batch["mask"], seeds)
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
