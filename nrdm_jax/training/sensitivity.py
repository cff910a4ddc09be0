"""Residual sensitivity: how the loss depends on the trunk at every unit (arXiv 2406.13215).

s_i = dL/dz_i obeys s_i = s_{i+1} (I + alpha_i J_i). What must not happen with depth is that |s_i|
decays or explodes, or that the trunk's tokens become all alike. This module makes figures of what a
model's taps and health give, a penalty on them, and an alarm.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from nrdm_jax.signatures import Array, Batch, Metrics, Params

# |s|^2 below which there is nothing to compare: the stack's start, where all is exactly 0.
TINY = 1e-12

# (params, taps, batch, keys) -> (mean loss, metrics)
MeanLoss = Callable[..., tuple[Array, Metrics]]


def profile(squares: Array, batch_size: int, micro_batches: int) -> Array:
    """RMS over examples of |s_i| of each example's own loss: (units + 1,), no unit's scale changes
    with batch size, accumulation or mesh.

    Args:
      squares: the taps' gradients, averaged over the micro-batches. Each is the sum over examples
        of |d(mean loss of a micro-batch)/dz|^2, that is |s|^2 / (batch_size / micro_batches)^2.
      batch_size: examples of all micro-batches.
      micro_batches: their number.
    """
    return jnp.sqrt(squares * (batch_size / micro_batches))


def unevenness(squares: Array) -> Array:
    """mean_i log((|s_i|^2 + e) / (|s_n|^2 + e))^2, 0 while |s_n|^2 <= e: of which the penalty is a
    multiple. (units + 1,) -> ()."""
    last = squares[-1]
    logs = jnp.log((squares[:-1] + TINY) / (last + TINY))
    return jnp.where(last > TINY, jnp.mean(logs**2), 0.0)


def penalty_gradient(
    mean_loss: MeanLoss, params: Params, batch: Batch, keys: Array, units: int
) -> tuple[Array, Params]:
    """The penalty of a batch, without its factor, and its gradient: reverse mode over reverse mode,
    so that the stack must be plainly differentiable twice (memory modes none and remat).
    """

    def penalty(params: Params) -> Array:
        taps = jnp.zeros(units + 1)
        squares = jax.grad(lambda t: mean_loss(params, t, batch, keys)[0])(taps)
        return unevenness(squares * keys.shape[0])

    return jax.value_and_grad(penalty)(params)


def trunk_rms(health: np.ndarray) -> np.ndarray:
    """(units + 1, 2) -> (units + 1,)."""
    return np.sqrt(health.sum(axis=-1))


def token_mean_share(health: np.ndarray) -> np.ndarray:
    """|Jz| / |Pz|, (units + 1, 2) -> (units + 1,): grows without bound as all tokens become one."""
    return np.sqrt(health[..., 0] / np.maximum(health[..., 1], TINY))


def slope(profile: np.ndarray) -> float:
    """Of log10 |s_i| over depth, from the first unit (0) to the last (1): 0 where the sensitivity
    travels unchanged, positive where it decays on its way to the input. NaN where |s| is 0."""
    if not np.all(profile > 0):
        return float("nan")
    depth = np.linspace(0.0, 1.0, len(profile))
    return float(np.polyfit(depth, np.log10(profile), 1)[0])


class Alarm:
    """Tells of a jump: of the largest token-mean share, or of the profile's slope, against the
    median of the last records.

    Attributes:
      records: how many are remembered; there is no alarm before three.
      share_factor: growth of the share that is a jump.
      slope_change: change of the slope that is one, in decades over the depth.
    """

    def __init__(self, records: int = 9, share_factor: float = 2.0, slope_change: float = 1.0):
        self.records, self.share_factor, self.slope_change = records, share_factor, slope_change
        self._shares: list[float] = []
        self._slopes: list[float] = []

    def check(self, profile: np.ndarray, health: np.ndarray) -> list[str]:
        """Remembers a record and returns what is wrong with it, in words."""
        share, incline = float(token_mean_share(health).max()), slope(profile)
        unit = int(token_mean_share(health).argmax())
        wrong = []
        if len(self._shares) >= 3:
            usual = float(np.median(self._shares))
            if share > self.share_factor * usual:
                wrong.append(
                    f"token-mean share {share:.3g} at unit {unit}, {share / usual:.1f} times its "
                    "median: the tokens become alike"
                )
        if len(self._slopes) >= 3:
            usual = float(np.median(self._slopes))
            if abs(incline - usual) > self.slope_change:
                wrong.append(
                    f"slope of the sensitivity {incline:.2f} decades over the depth, "
                    f"its median {usual:.2f}"
                )
        self._shares = [*self._shares, share][-self.records :]
        if np.isfinite(incline):
            self._slopes = [*self._slopes, incline][-self.records :]
        return wrong
