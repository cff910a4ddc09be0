"""Which steps of a run stay, which of them all processes see, and how they are removed."""

import dataclasses
import itertools
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from nrdm_jax.checkpointing import notes
from nrdm_jax.checkpointing.errors import DamagedCheckpoint, say
from nrdm_jax.checkpointing.retention import Retention
from nrdm_jax.checkpointing.stored import StoredCheckpoints
from nrdm_jax.checkpointing.together import Together

LISTING_TIMEOUT = 180.0  # seconds after which all processes must see a directory as it is
METRICS = "metrics"  # of a note: of the held-out records at that step
PARTIAL = ".orbax-checkpoint-tmp"  # orbax's name for what is not committed


class KeptCheckpoints(StoredCheckpoints):
    """The checkpoints under one directory, and which of them stay.

    Args:
      directory: of them.
      retention: which stay.
      together: what the processes do together there.
      manager: orbax's, of the policy `preservation`.
    """

    def __init__(
        self,
        directory: str,
        *,
        retention: Retention,
        together: Together | None,
        manager: ocp.CheckpointManager,
    ):
        super().__init__(directory, together=together, manager=manager)
        self._retention = retention
        self._values: dict[int, float | None] = {}  # of the retention's metric

    def preservation(self) -> ocp.checkpoint_managers.PreservationPolicy:
        """The retention as orbax asks for it, at each save."""
        return _Kept(self._to_keep)

    def _to_keep(self, steps: list[int]) -> set[int]:
        if not self._retention.best:
            return self._retention.kept(steps, {})
        values, unread = {}, set()
        for step in steps:
            try:
                if (value := self._value(step)) is not None:
                    values[step] = value
            except (DamagedCheckpoint, OSError) as error:
                # It may be the best, and be read the next time; one without a note was half
                # removed when a process was killed.
                if isinstance(error, OSError) or notes.place(self._directory, step).exists():
                    unread.add(step)
                    say(f"warning: {error}; it is kept")
        return self._retention.kept(steps, values) | unread

    def _value(self, step: int) -> float | None:
        """What a step's note says of the metric by which the best are kept. Raises as `meta`."""
        if step not in self._values:
            self._remember(step, self.meta(step, pauses=()))  # the others wait in the library
        return self._values[step]

    def _remember(self, step: int, meta: Mapping[str, Any]) -> None:
        self._values[step] = meta.get(METRICS, {}).get(self._retention.metric)

    def at_most(self, planned: Sequence[int]) -> int:
        """How many more than now there will be at once, as these ascending steps are saved."""
        have = self.steps()
        return self._retention.most([*have, *planned]) - len(have)

    def agreed_steps(self) -> list[int]:
        """All committed steps, from the oldest, when all processes list those that the writer does:
        a client of a network's file system lists for a while what is there no more.

        Raises:
          OSError: after `LISTING_TIMEOUT` seconds this one still does not.
        """
        wanted = self._together.told(self.steps())[0]
        deadline = time.monotonic() + LISTING_TIMEOUT
        while self.steps() != wanted:
            if time.monotonic() > deadline:
                raise OSError(
                    f"{self._directory} has steps {self.steps()} to this process and {wanted} to "
                    f"the one that writes, after {LISTING_TIMEOUT:.0f} s; give all one --workdir"
                )
            time.sleep(1)
            self.reload()
        self._together.told(True)  # who waits in a collective for one that still looks gives up
        return wanted

    def remove_after(self, step: int) -> None:
        """Removes what was committed of later steps, for all processes."""
        later = [s for s in self.agreed_steps() if s > step]
        if not later:
            return
        if self._together.is_writer():
            for number in reversed(later):
                # Under a name that is no step's, which is cleaned up: a kill leaves no half of one.
                partial = pathlib.Path(self._directory, f"{number}{PARTIAL}")
                shutil.rmtree(partial, ignore_errors=True)
                pathlib.Path(self._directory, str(number)).rename(partial)
                shutil.rmtree(partial, ignore_errors=True)
            self.reload()
        self._together.told(True)
        self.reload()
        self.agreed_steps()

    def set_aside(self, step: int) -> epath.Path:
        """Moves a step out of the way, and says where to: nothing is deleted. Of several processes
        one does it."""
        home = self._directory.parent / f"{self._directory.name}_bad"
        home.mkdir(parents=True, exist_ok=True)
        names = (f"{step}.{n}" if n else str(step) for n in itertools.count())
        place = next(home / name for name in names if not (home / name).exists())
        (self._directory / str(step)).rename(place)
        return place


@dataclasses.dataclass
class _Kept(ocp.checkpoint_managers.PreservationPolicy):
    """Ascending steps -> those that stay."""

    choose: Callable[[list[int]], set[int]]

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        kept = self.choose([info.step for info in checkpoints])
        return [info.step in kept for info in checkpoints]
