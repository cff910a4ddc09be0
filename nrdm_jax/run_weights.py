"""The weights that a run has left on disk: which there are, and reading them."""

import dataclasses
import pathlib
import re

from nrdm_jax.checkpointing.errors import DamagedCheckpoint, RemovedCheckpoint
from nrdm_jax.checkpointing.stored import StoredCheckpoints, steps_in
from nrdm_jax.processes import distributed
from nrdm_jax.signatures import Params
from nrdm_jax.training import power_ema

CHECKPOINTS, SNAPSHOTS = "checkpoints", "ema_snapshots"


@dataclasses.dataclass(frozen=True)
class Stored:
    """The weights of a step under `directory`: the EMA, or the average of a width."""

    directory: pathlib.Path
    step: int
    width: float | None = None

    def __str__(self) -> str:
        kind = "EMA" if self.width is None else f"average of width {self.width:g}"
        return f"{kind} of {self.directory}/{self.step}"

    def read(self, abstract: Params, *, partial: bool = False) -> Params:
        """As `abstract`, with its shardings; nothing is written there. `partial`: there may be more
        than that.

        Raises:
          ValueError: they are of other shapes, with a table.
          RemovedCheckpoint: a run that goes on has removed them meanwhile.
          DamagedCheckpoint: they are not what was saved, naming the newest step that is whole.
            Nothing is read from there instead: whoever asked for these would not know.
        """
        checkpoints = StoredCheckpoints(str(self.directory), together=distributed)
        try:
            if self.width is None and partial:
                return checkpoints.restore_part(self.step, "ema", abstract)
            if self.width is None:
                return checkpoints.restore(self.step, {"ema": abstract})["ema"]
            name = power_ema.name_of(self.width)
            return checkpoints.restore_part(self.step, "averages", {name: abstract})[name]
        except RemovedCheckpoint:
            raise
        except DamagedCheckpoint as error:
            others = (s for s in reversed(checkpoints.steps()) if s != self.step)
            whole = next((s for s in others if not checkpoints.faults(s)), None)
            raise DamagedCheckpoint(
                f"{error}; "
                + (
                    "no other step is whole"
                    if whole is None
                    else f"the newest whole one is step {whole}: train on, which sets the damaged "
                    f"one aside, or move {self.directory}/{self.step} away"
                )
            ) from error
        finally:
            checkpoints.close()


def find(workdir: str, width: float | None = None) -> Stored:
    """The weights of the newest checkpoint: the EMA, or the average of a width that the run tracks.

    Raises:
      ValueError: there is no checkpoint, or the run does not track the width.
    """
    steps = steps_of(workdir, CHECKPOINTS)
    if not steps:
        raise ValueError(f"{workdir} has no checkpoint; train there first, or name another workdir")
    directory = pathlib.Path(workdir) / CHECKPOINTS
    tracked = () if width is None else widths_of(directory, steps[-1])
    if width is not None and width not in tracked:
        other = (
            f"tracks {listed(tracked)}; nrdm ema --workdir={workdir} --width={width:g} --out=DIR "
            "makes it from its snapshots"
            if tracked
            else "tracks no widths; train with train.ema_widths, such as (0.1, 0.25)"
        )
        raise ValueError(f"--ema_width={width:g}: {workdir} {other}")
    return Stored(directory, steps[-1], width)


def find_at(workdir: str, step: int) -> Stored:
    """The weights of an earlier step: the EMA of its checkpoint, or, where that was not kept, the
    average of its snapshot, of the first width that the run tracks.

    Raises:
      ValueError: there is neither, with the steps that there are.
    """
    checkpoints, snapshots = (steps_of(workdir, kind) for kind in (CHECKPOINTS, SNAPSHOTS))
    if step in checkpoints:
        return Stored(pathlib.Path(workdir) / CHECKPOINTS, step)
    if step in snapshots:
        directory = pathlib.Path(workdir) / SNAPSHOTS
        return Stored(directory, step, widths_of(directory, step)[0])
    raise ValueError(
        f"{workdir}@{step}: there is no such step; choose one of its checkpoints "
        f"({listed(checkpoints)}) or snapshots "
        f"({listed(snapshots) or 'none, see train.ema_widths'})"
    )


def at_step(text: str) -> tuple[str, int | None]:
    """`runs/x@5000` -> the workdir and the step; without @ the step is None. A directory of the
    whole name is a workdir."""
    found = re.fullmatch(r"(.+)@(\d+)", text)
    if not found or pathlib.Path(text).is_dir():
        return text, None
    return found[1], int(found[2])


def steps_of(workdir: str, kind: str) -> list[int]:
    """Of the checkpoints or snapshots of a run, from the oldest, as the writer sees them: a run may
    commit one while several processes look. All must ask."""
    return distributed.told(steps_in(pathlib.Path(workdir) / kind))[0]


def widths_of(directory: pathlib.Path, step: int) -> tuple[float, ...]:
    """Of the power-function averages that a checkpoint or a snapshot has, in ascending order."""
    checkpoints = StoredCheckpoints(str(directory), together=distributed)
    try:
        return tuple(sorted(map(float, checkpoints.parts_of(step, "averages"))))
    finally:
        checkpoints.close()


def listed(values) -> str:
    """For a message."""
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
