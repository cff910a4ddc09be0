"""How well an autoencoder gives back what it was given, beside the best linear projection to as
many numbers (principal components)."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from nrdm_jax.evaluation.linear_denoiser import LinearDenoiser
from nrdm_jax.signatures import Array

PEAK = 2.0  # values are in [-1, 1]

# (params, batch) -> sums over the masked examples by name: "error" and "square_error", both a
# number's mean within an example, and what else is to be averaged.
Sums = Callable[..., dict[str, Array]]


def psnr(square_error: float, peak: float = PEAK) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(peak^2 / square_error), of the mean square error
    over a whole set; infinite at 0."""
    return 10.0 * math.log10(peak**2 / square_error) if square_error > 0 else math.inf


def reconstruction_scores(
    sums: Sums,
    params: Any,
    batches: Callable[[], Iterable],
    poll: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """`heldout_loss`, the mean error, `psnr`, and the means of what else `sums` gives.

    Args:
      sums: jitted.
      params: the weights, or whatever else `sums` takes first.
      batches, poll: as of `heldout.heldout_losses`.
    """
    totals: dict[str, float] = {}
    count = 0
    for batch in batches():
        poll()
        for name, value in sums(params, batch).items():
            totals[name] = totals.get(name, 0.0) + float(value)
        count += int(jnp.sum(batch["mask"]))
    means = {name: total / count for name, total in totals.items()}
    return {
        "heldout_loss": means.pop("error"),
        "psnr": psnr(means.pop("square_error")),
        "heldout_examples": count,
        **{f"heldout_{name}": value for name, value in means.items()},
    }


def project(linear: LinearDenoiser, x: Array, count: int) -> Array:
    """x (B, *S, C) with all but the `count` directions of most variance at their mean: of all
    linear maps to so many numbers and back the one of least square error on the examples that
    `linear` was fitted to (Eckart & Young, 1936)."""
    order = jnp.argsort(linear.variances)[::-1][:count]
    basis = linear.basis[:, order]
    flat = x.reshape(x.shape[0], -1) - linear.mean[None, :]
    highest = jax.lax.Precision.HIGHEST
    inside = jnp.matmul(flat, basis, precision=highest)
    back = jnp.matmul(inside, basis.T, precision=highest)
    return (back + linear.mean[None, :]).reshape(x.shape)
