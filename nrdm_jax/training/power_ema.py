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


def name_of(width: float) -> str:
    """By which an average is known in states and checkpoints; `float` is the inverse."""
    return repr(float(width))


def start(params: Params, widths: Sequence[float]) -> dict[str, Params]:
    """The averages before the first step, by name: the weights, of which the first step leaves
    nothing."""
    return {name_of(width): jax.tree.map(jnp.copy, params) for width in widths}


def update(averages: dict[str, Params], params: Params, step: Array) -> dict[str, Params]:
    """The averages with the weights of step `step` = 1, 2, ..., leaf by leaf."""

    def updated(average: Params, width: float) -> Params:
        part = share(step.astype(jnp.float32), width)
        return jax.tree.map(lambda a, p: a + part * (p - a), average, params)

    return {name: updated(average, float(name)) for name, average in averages.items()}


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
    gram, right, _ = _products(snapshots, step, width)
    # Snapshots that lie close are nearly alike: the smallest solution of the nearest fit.
    return np.linalg.lstsq(gram, right, rcond=1e-14)[0]


def profile_error(
    snapshots: Sequence[tuple[int, float]], step: int, width: float, factors: np.ndarray
) -> float:
    """How far the profile of the summed snapshots is from that which is wanted: the norm of the
    difference over the norm of the latter, in L2 over the steps.

    An average is the integral of its profile times the weights, so that this times the profile's
    norm, (gamma + 1) / sqrt((2 gamma + 1) step), times the norm over the steps of a weight is the
    most that it can be wrong by. Values below 1e-7 are rounding. Arguments as `coefficients`.
    """
    gram, right, norm = _products(snapshots, step, width)
    squared = norm - 2 * factors @ right + factors @ gram @ factors
    return float(np.sqrt(max(0.0, squared / norm)))


def _products(snapshots: Sequence[tuple[int, float]], step: int, width: float):
    """Of the snapshots' profiles with one another, of each with that which is wanted, and of that
    with itself."""
    t = np.array([s for s, _ in snapshots], np.float64)
    gammas = np.array([gamma_of(w) for _, w in snapshots])
    last, gamma = np.float64(step), np.float64(gamma_of(width))
    return (
        _product(t[:, None], gammas[:, None], t[None, :], gammas[None, :]),
        _product(t, gammas, last, gamma),
        _product(last, gamma, last, gamma),
    )


def _product(t_a, gamma_a, t_b, gamma_b):
    """The integral of the product of two profiles, each of integral one: (gamma + 1) s^gamma /
    t^(gamma + 1) for s in [0, t]."""
    exponent = np.where(t_a < t_b, gamma_b, -gamma_a)
    ratio = (t_a / t_b) ** exponent
    return (gamma_a + 1) * (gamma_b + 1) * ratio / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))


def plus(total: Params, factor: Array, tree: Params) -> Params:
    """total + factor * tree, leaf by leaf, in the type of the total."""
    return jax.tree.map(lambda a, b: a + factor * b.astype(a.dtype), total, tree)
