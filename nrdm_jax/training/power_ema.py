"""Averages of the weights whose width is a share of the training so far, and any other width from
snapshots of a few (Karras et al., EDM2, arXiv 2312.02696, section 3 and appendix C).

After t steps the average of width `width` has the weights of step s in proportion to s^gamma: the
profile's standard deviation is `width` t.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nrdm_jax.signatures import Array, Params


def gamma_of(width: float) -> float:
    """The exponent of a relative standard deviation (eq. 126 there, solved as in algorithm 2).

    Raises:
      ValueError: the width is not within (0, 0.289), that of an even average.
    """
    if not 0.0 < width < 12**-0.5:
        raise ValueError(f"a width of {width:g} is not within (0, 0.289); give one like 0.1")
    # (gamma + 1) = width^2 (gamma + 2)^2 (gamma + 3)
    t = width**-2
    return float(np.roots([1.0, 7.0, 16.0 - t, 12.0 - t]).real.max())


def share(step: Array, width: float) -> Array:
    """What the present weights, of step t = 1, 2, ..., count in the average: 1 - (1 - 1/t)^(gamma +
    1) (eq. 127), to the last digits of float32; 1 at the first, so that the start counts for
    nothing."""
    return -jnp.expm1((gamma_of(width) + 1.0) * jnp.log1p(-1.0 / step))


def coefficients(snapshots: Sequence[tuple[int, float]], step: int, width: float) -> np.ndarray:
    """What to multiply snapshots of averages by, so that their sum is nearest to the average of
    `width` at `step`: least squares on the profiles (algorithm 3).

    Args:
      snapshots: (step, width) of each.
      step: at which the average is wanted, that of a snapshot at most.
      width: of the average.

    Raises:
      ValueError: there is no snapshot, or none as late as `step`.
    """
    if not snapshots or max(s for s, _ in snapshots) < step:
        raise ValueError(f"there is no snapshot of step {step} or later; choose an earlier step")
    t = np.array([s for s, _ in snapshots], np.float64)
    gammas = np.array([gamma_of(w) for _, w in snapshots])
    gram = _product(t[:, None], gammas[:, None], t[None, :], gammas[None, :])
    right = _product(t, gammas, np.float64(step), np.float64(gamma_of(width)))
    # Snapshots that lie close are nearly alike: the smallest solution of the nearest fit.
    return np.linalg.lstsq(gram, right, rcond=1e-14)[0]


def _product(t_a, gamma_a, t_b, gamma_b):
    """The integral of the product of two profiles, each of integral one: (gamma + 1) s^gamma /
    t^(gamma + 1) for s in [0, t]."""
    exponent = np.where(t_a < t_b, gamma_b, -gamma_a)
    ratio = (t_a / t_b) ** exponent
    return (gamma_a + 1) * (gamma_b + 1) * ratio / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))


def combined(trees: Sequence[Params], weights: np.ndarray) -> Params:
    """The sum of weighted trees, in float32."""

    def leaf(*leaves):
        total = jnp.zeros(leaves[0].shape, jnp.float32)
        for weight, one in zip(weights, leaves, strict=True):
            total = total + jnp.float32(weight) * one.astype(jnp.float32)
        return total

    return jax.tree.map(leaf, *trees)
