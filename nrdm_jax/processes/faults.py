"""A plan of what is to go wrong in a run, for tests and drills; without one nothing of it is in a
run: `--fault=kill@step=7,hang@step=5:rank=1`.

  kill@step=N    SIGKILL of this process at the end of step N
  term@step=N    SIGTERM of this process at the end of step N
  stop@step=N    SIGSTOP of this process at the end of step N
  hang@step=N    step N never ends
  nan@step=N     the batch of step N makes the loss NaN
  spike@step=N   the batch of step N makes the loss jump
  enospc@save=N  the N-th save of this process fails as on a disk that is full
  flip@step=N    a bit of a file of the checkpoint of step N changes once it is committed

`:rank=R` names the process of several: without it all, but for `flip`, whose files are of all of
them: process 0. A batch is of all, always. Each fault happens once in a workdir: the same command
goes on after it.
"""

import dataclasses
import re

COUNTED = {
    "kill": "step",
    "term": "step",
    "stop": "step",
    "hang": "step",
    "nan": "step",
    "spike": "step",
    "enospc": "save",
    "flip": "step",
}
OF_BATCHES = ("nan", "spike")


@dataclasses.dataclass(frozen=True)
class Fault:
    """One of the plan.

    Attributes:
      kind: of `COUNTED`.
      at: the step or the save, from 1.
      rank: of the process that it befalls; None: of all.
    """

    kind: str
    at: int
    rank: int | None = None

    def __str__(self) -> str:
        rank = "" if self.rank is None else f":rank={self.rank}"
        return f"{self.kind}@{COUNTED[self.kind]}={self.at}{rank}"

    def befalls(self, process: int) -> bool:
        """Whether it is one of this process."""
        return self.rank is None or self.rank == process


def parse(text: str) -> tuple[Fault, ...]:
    """The faults of a plan, such as `kill@step=7,hang@step=5:rank=1`; none of an empty one.

    Raises:
      ValueError: it is none, naming the part.
    """
    return tuple(_one(part.strip()) for part in text.split(",") if text.strip())


def _one(part: str) -> Fault:
    found = re.fullmatch(r"(\w+)@(\w+)=(\d+)(?::rank=(\d+))?", part)
    if not found:
        raise ValueError(
            f"--fault: {part!r} is no fault; give KIND@step=N, with :rank=R for one of several "
            "processes, such as kill@step=7"
        )
    kind, counted, at, rank = found.groups()
    if kind not in COUNTED:
        raise ValueError(f"--fault: {kind!r} is none; give one of {', '.join(COUNTED)}")
    if counted != COUNTED[kind]:
        raise ValueError(f"--fault: {part!r} counts {counted}s; give {kind}@{COUNTED[kind]}=N")
    if int(at) < 1:
        raise ValueError(f"--fault: {part!r}: {counted}s are counted from 1")
    if rank is not None and kind in OF_BATCHES:
        raise ValueError(f"--fault: {part!r}: a batch is of all processes; leave out :rank")
    if rank is None and kind == "flip":
        rank = 0
    return Fault(kind, int(at), None if rank is None else int(rank))
