"""Which checkpoint a run goes on from: the newest that is whole, for all of its processes."""

import sys

import jax

from nrdm_jax.checkpointing.errors import DamagedCheckpoint
from nrdm_jax.checkpointing.manager import Checkpoints
from nrdm_jax.processes import distributed

SAID = 5  # faults of a step, in a message


def newest_good(checkpoints: Checkpoints, name: str) -> int | None:
    """The newest step in which no process finds a fault; None where there is no step at all. Newer
    ones are set aside, and it is said what is wrong with them.

    Args:
      checkpoints: not read only.
      name: of where they are.

    Raises:
      DamagedCheckpoint: there are steps, and none is whole. They stay where they are, so that
        nothing begins anew in their place.
      Stop: a process did not tell what it found.
    """
    steps = distributed.told(checkpoints.steps())[0]
    bad: dict[int, list[str]] = {}
    for step in reversed(steps):
        found = distributed.told(checkpoints.faults(step, jax.process_index(), jax.process_count()))
        faults = sorted(set().union(*found))
        if not faults:
            break
        bad[step] = faults
    listed = "".join(f"\n  step {step}: {line}" for step, lines in bad.items()
                     for line in _said(lines))  # fmt: skip
    if len(bad) == len(steps):
        if not steps:
            return None
        raise DamagedCheckpoint(
            f"no checkpoint in {name} is whole:{listed}\nrestore that directory from a copy, or "
            "train in another workdir"
        )
    for step in bad:
        if distributed.is_writer():
            place = checkpoints.set_aside(step)
            print(f"warning: checkpoint {step} is damaged, set aside in {place}", file=sys.stderr)
    if bad:
        if distributed.is_writer():
            print(listed.lstrip("\n"), file=sys.stderr, flush=True)
        distributed.meet("set_aside")
        checkpoints.reload()
    return steps[-1 - len(bad)]


def _said(lines: list[str]) -> list[str]:
    more = len(lines) - SAID
    return lines[:SAID] + ([f"and {more} more"] if more > 0 else [])
