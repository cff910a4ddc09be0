"""What is made of a loss that goes wrong: a policy over the sequence of a run's metrics.

Nothing but that sequence decides, no clock and no process: the metrics are the same on all
processes, so all decide alike; and what it remembers is in every checkpoint, so that a run that was
killed decides as one that was not.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from nrdm_jax.signatures import Metrics
from nrdm_jax.training import sensitivity
from nrdm_jax.training.state import TrainState

# Standard deviations of a normal distribution in its median absolute deviation: 1 / Phi^-1(3/4).
MAD_TO_STD = 1.4826
# Of the median: what is less than that above it is no spike, however even the losses were.
LEAST_RISE = 1e-3
# Records of the token-mean share that are remembered, as many as `sensitivity.Alarm`.
RECORDS = 9


@dataclasses.dataclass(frozen=True)
class Limits:
    """Attributes:
    most_in_a_row: bad steps in a row that are one too many.
    spike_factor: robust standard deviations above the running median at which a loss is a spike,
      and its step bad; 0: none is.
    spike_window: good losses that the median is of; before there are so many nothing is a spike.
    collapse_factor: growth of the largest token-mean share over its median that is a collapse; 0:
      none is.
    """

    most_in_a_row: int
    spike_factor: float = 0.0
    spike_window: int = 128
    collapse_factor: float = 0.0


@dataclasses.dataclass(frozen=True)
class Trouble:
    """That a run must not go on as it does.

    Attributes:
      since: the first step that is suspect: what was saved before it is good.
      step: at which it was one too many.
      reason: in words.
      counts: as `Policy.counts`.
    """

    since: int
    step: int
    reason: str
    counts: dict[str, int]


class Broken(Exception):
    """Ends a stretch of training with `trouble`."""

    def __init__(self, trouble: Trouble):
        super().__init__(trouble.reason)
        self.trouble = trouble


class Policy:
    """Bad is a step whose loss or gradient was not finite, or whose loss is a spike. So many in a
    row are trouble; so is, at once, a collapse of the tokens, which is looked for now and then.

    Args:
      limits: of it.
      memory: what `memory` gave of the steps before, or {}.
    """

    def __init__(self, limits: Limits, memory: dict[str, Any]):
        self._limits = limits
        self._in_a_row, self._since = memory.get("in_a_row", 0), memory.get("since", 0)
        self._losses: list[float] = memory.get("losses", [])[-limits.spike_window :]
        self._shares: list[float] = memory.get("shares", [])[-RECORDS:]
        self._alike_since: int = memory.get("alike_since", 1)  # the step after the last good record
        self.counts: dict[str, int] = {
            name: memory.get(name, 0) for name in ("skipped", "spikes", "rollbacks")
        }

    def memory(self) -> dict[str, Any]:
        """Plain JSON values: all that the next decision depends on."""
        return {
            "in_a_row": self._in_a_row,
            "since": self._since,
            "losses": list(self._losses),
            "shares": list(self._shares),
            "alike_since": self._alike_since,
            **self.counts,
        }

    def observe(
        self, step: int, loss: float, grad_norm: float, finite: bool, share: float | None = None
    ) -> tuple[str, Trouble | None]:
        """To be called for every step in order.

        Args:
          step: from 1.
          loss, grad_norm: of the step.
          finite: whether both were, and the update was not skipped.
          share: the largest token-mean share of the units, if the step is one that is looked at.

        Returns what is wrong with the step, in words, "" where nothing is; and the trouble.
        """
        wrong = self._wrong(loss, grad_norm, finite)
        if wrong:
            self._since = self._since if self._in_a_row else step
            self._in_a_row += 1
            wrong = f"{wrong}; {self._in_a_row} in a row"
            if self._in_a_row >= self._limits.most_in_a_row:
                return wrong, self._trouble(self._since, step, wrong)
        else:
            self._in_a_row = 0
        if share is not None and finite:
            alike = self._alike(share)
            if alike:
                return alike, self._trouble(self._alike_since, step, alike)
            self._alike_since = step + 1
        return wrong, None

    def _trouble(self, since: int, step: int, reason: str) -> Trouble:
        return Trouble(since, step, reason, dict(self.counts))

    def _wrong(self, loss: float, grad_norm: float, finite: bool) -> str:
        if not finite:
            self.counts["skipped"] += 1
            return f"loss={loss:.4g}, grad_norm={grad_norm:.4g}: the update is skipped"
        limits = self._limits
        if not limits.spike_factor:
            return ""
        if len(self._losses) >= limits.spike_window:
            highest = spike_level(self._losses, limits.spike_factor)
            if loss > highest:
                self.counts["spikes"] += 1
                median = float(np.median(self._losses))
                return f"loss={loss:.4g}: a spike, above {highest:.4g}; the median is {median:.4g}"
        self._losses = [*self._losses, loss][-limits.spike_window :]
        return ""

    def _alike(self, share: float) -> str:
        limits = self._limits
        if not limits.collapse_factor:
            return ""
        usual = sensitivity.median(self._shares)
        if usual is not None and sensitivity.alike(share, usual, limits.collapse_factor):
            return f"token-mean share {share:.3g}, its median {usual:.3g}: the tokens become alike"
        if np.isfinite(share):
            self._shares = [*self._shares, share][-RECORDS:]
        return ""


def spike_level(losses: Sequence[float], factor: float) -> float:
    """median + factor * 1.4826 * median(|loss - median|): what outliers among the losses, up to
    half of them, do not move."""
    median = np.median(losses)
    spread = MAD_TO_STD * np.median(np.abs(np.asarray(losses) - median))
    return float(median + factor * max(spread, LEAST_RISE * abs(median)))


class Guard:
    """The policy as a hook, the first of them. It looks at the step before the present one, so that
    the device never waits for the host; at once where `at_once(step)` says that the host waits
    anyway, as before a checkpoint, which is then never of a step nobody has looked at.

    Args:
      policy: which decides.
      say: is told what is wrong with a step.
      at_once: see above.
      shares_every: steps between looks at the token-mean share; 0: never.
    """

    def __init__(
        self,
        policy: Policy,
        say: Callable[[str], None],
        at_once: Callable[[int], bool],
        *,
        shares_every: int = 0,
    ):
        self._policy, self._say, self._at_once = policy, say, at_once
        self._shares_every = shares_every
        self._previous: tuple[int, Metrics] | None = None

    def __call__(self, step: int, state: TrainState, metrics: Metrics, data_wait: float) -> None:
        """Raises:
        Broken: the step before, or this one, was one too many.
        """
        self.settle()
        seen = {name: metrics[name] for name in ("loss", "grad_norm", "finite")}
        if self._shares_every and step % self._shares_every == 0:
            seen["health"] = metrics["health"]
        self._previous = (step, seen)
        if self._at_once(step):
            self.settle()

    def settle(self) -> None:
        """Looks at the last step, if that is still to be done. Raises as a call."""
        if self._previous is None:
            return
        (step, metrics), self._previous = self._previous, None
        seen = jax.device_get(metrics)
        share = None
        if "health" in seen:
            share = float(sensitivity.token_mean_share(seen["health"]).max())
        wrong, trouble = self._policy.observe(
            step, float(seen["loss"]), float(seen["grad_norm"]), bool(seen["finite"]), share
        )
        if wrong:
            self._say(f"step={step} WARNING: {wrong}")
        if trouble:
            raise Broken(trouble)

    def counts(self) -> dict[str, int]:
        """Of the run: updates `skipped`, `spikes` and `rollbacks`."""
        return dict(self._policy.counts)

    def memory(self) -> dict[str, Any]:
        """As the policy's, of all steps so far. Raises as a call."""
        self.settle()
        return self._policy.memory()
