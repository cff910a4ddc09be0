"""Which steps stay when a new one is committed."""

import dataclasses
import math
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Retention:
    """The union of three choices.

    Attributes:
      newest: so many of the newest; None: all.
      every: the multiples of it; 0: none for that.
      best: so many of the least `metric`, among those that say it; 0: none for that.
      metric: of a step's note.
    """

    newest: int | None = 1
    every: int = 0
    best: int = 0
    metric: str = "heldout_loss"

    def kept(self, steps: Sequence[int], values: Mapping[int, float]) -> set[int]:
        """Of ascending steps; `values` of the metric, of those that have one."""
        if self.newest is None:
            return set(steps)
        kept = set(steps[len(steps) - self.newest :] if self.newest < len(steps) else steps)
        if self.every:
            kept |= {step for step in steps if step % self.every == 0}
        known = [step for step in steps if math.isfinite(values.get(step, math.nan))]
        # Of equal ones the newer.
        return kept | set(sorted(known, key=lambda step: (values[step], -step))[: self.best])

    def most(self, steps: Sequence[int]) -> int:
        """How many there may be at once while ascending steps are saved, the one that is being
        written included."""
        if self.newest is None:
            return len(steps)
        regular = sum(step % self.every == 0 for step in steps) if self.every else 0
        return min(len(steps), self.newest + self.best + regular + 1)
