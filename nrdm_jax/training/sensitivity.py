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


def alike(share, usual, factor: float):
    """Where tokens become alike: the share has grown by a factor, and is more than all else."""
    return (share > factor * usual) & (share > 1)


def slope(profile: np.ndarray) -> float:
    """Of log10 |s_i| over depth, from the first unit (0) to the last (1): 0 where the sensitivity
    travels unchanged, positive where it decays on its way to the input. NaN where |s| is 0, which
    it is below about 1e-19, the root of what float32 can hold."""
    if not np.all(profile > 0):
        return float("nan")
    depth = np.linspace(0.0, 1.0, len(profile))
    return float(np.polyfit(depth, np.log10(profile), 1)[0])


class Alarm:
    """Tells of jumps against the median of the last records, at any unit: the token-mean share
    where it is above 1, the trunk's RMS, the profile's slope; and of a sensitivity that vanishes.

    Attributes:
      records: how many are remembered; there is no alarm of a jump before three.
      share_factor, rms_factor: growth that is a jump.
      slope_change: change of the slope that is one, in decades over the depth.
    """

    def __init__(
        self,
        records: int = 9,
        share_factor: float = 2.0,
        rms_factor: float = 4.0,
        slope_change: float = 1.0,
    ):
        self.records, self.slope_change = records, slope_change
        self.share_factor, self.rms_factor = share_factor, rms_factor
        self._shares: list[np.ndarray] = []
        self._rms: list[np.ndarray] = []
        self._slopes: list[float] = []
        self._vanished = False

    def check(self, profile: np.ndarray, share: np.ndarray, rms: np.ndarray) -> list[str]:
        """Remembers a record, (units + 1,) each, and returns what is wrong with it, in words."""
        if not all(np.all(np.isfinite(x)) for x in (profile, share, rms)):
            return ["sensitivity or trunk is not finite"]  # nothing to be remembered
        wrong = []
        gone, before = profile[-1] > 0 and not np.all(profile > 0), self._vanished
        if gone and not before:
            last = int(np.flatnonzero(profile == 0).max())
            wrong.append(f"sensitivity vanishes: it is 0 up to unit {last} of {len(profile) - 1}")
        self._vanished = gone
        usual = median(self._shares)
        if usual is not None and np.any(told := alike(share, usual, self.share_factor)):
            unit = int(np.argmax(np.where(told, share / np.maximum(usual, TINY), 0)))
            wrong.append(
                f"token-mean share {share[unit]:.3g} at unit {unit}, its median {usual[unit]:.3g}: "
                "the tokens become alike"
            )
        usual = median(self._rms)
        if usual is not None and np.any(rms > self.rms_factor * usual):
            unit = int(np.argmax(rms / np.maximum(usual, TINY)))
            wrong.append(f"RMS of the trunk {rms[unit]:.3g} at unit {unit}, its median "
                         f"{usual[unit]:.3g}")  # fmt: skip
        incline = slope(profile)
        usual = median(self._slopes)
        if usual is not None and abs(incline - usual) > self.slope_change:
            wrong.append(
                f"slope of the sensitivity {incline:.2f} decades over the depth, "
                f"its median {usual:.2f}"
            )
        self._shares = [*self._shares, share][-self.records :]
        self._rms = [*self._rms, rms][-self.records :]
        if np.isfinite(incline):
            self._slopes = [*self._slopes, incline][-self.records :]
        return wrong


def median(records: list):
    """Over the records; None while they are fewer than three."""
    return np.median(np.stack(records), axis=0) if len(records) >= 3 else None
