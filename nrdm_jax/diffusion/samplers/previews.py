"""Estimates of x0 along a trajectory, handed out of the solver's own loop.

A solver that scans over its steps by `scan` needs to know no more of it: what is recorded goes
through the loop beside the solver's state, and without a `Recorded` network there is no such thing.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nrdm_jax.signatures import Array


class Recorded:
    """A PredictFn, or one that says more behind x0, which keeps its last estimates of x0 down to
    each of some times.

    Where a solver evaluates one of the times twice, as Heun's does, a trial comes before the state
    itself; where it evaluates more noise in its place, as EDM's with churn, that estimate counts,
    but none that comes after one at a lower time.
    Values of a trace: to be used within one, and by `scan` in loops.

    Attributes:
      predict: the same, keeping nothing; all examples of a call have one time.
      times: (k,), decreasing.
      kept: (k, B, *S, C), zero where nothing was estimated yet; and the lowest time evaluated.
    """

    def __init__(
        self, predict: Callable[[Array, Array], Any], times: Array, shape: tuple[int, ...]
    ):
        self.predict = predict
        self.times = times
        self.kept = (jnp.zeros((len(times), *shape), jnp.float32), jnp.float32(jnp.inf))

    def __call__(self, x_t: Array, t_B: Array) -> Any:
        x0, *more = self.predict(x_t, t_B)
        estimates, lowest = self.kept
        lowest = jnp.minimum(lowest, t_B[0])
        still = (lowest >= self.times).reshape(-1, *(1,) * x0.ndim)
        self.kept = (jnp.where(still, x0[None], estimates), lowest)
        return x0, *more


def scan(
    predict: Callable[..., Any], step: Callable[[Any, Any], tuple[Any, None]], carry: Any, xs: Any
) -> Any:
    """The carry after `jax.lax.scan(step, carry, xs)`, whose steps call `predict`."""
    if not isinstance(predict, Recorded):
        return jax.lax.scan(step, carry, xs)[0]

    def recorded(both, x):
        carry, predict.kept = both
        carry, _ = step(carry, x)
        return (carry, predict.kept), None

    carry, predict.kept = jax.lax.scan(recorded, (carry, predict.kept), xs)[0]
    return carry
