"""Which checkpoint a run goes on from: the newest that is whole, for all of its processes."""

import pathlib
import sys
from collections.abc import Mapping, Sequence

import jax

from nrdm_jax.checkpointing.errors import DamagedCheckpoint
from nrdm_jax.checkpointing.manager import Checkpoints
from nrdm_jax.processes import distributed
from nrdm_jax.training.metrics import read_metrics

SAID = 5  # faults of a step, in a message


def newest_good(checkpoints: Checkpoints) -> int | None:
    """The newest step in which no two processes find a fault; None where there is no step at all.
    Newer ones are set aside, and it is said what is wrong with them. Who is alone looks twice.

    Args:
      checkpoints: not read only.

    Raises:
      DamagedCheckpoint: there are steps, and none is whole. They stay where they are, so that
        nothing begins anew in their place.
      Stop: a process did not tell what it found.
    """
    steps = checkpoints.agreed_steps()
    return first_whole(checkpoints, list(reversed(steps))) if steps else None


def first_whole(checkpoints: Checkpoints, candidates: Sequence[int], which: str = "") -> int:
    """The first of these steps that is whole, of `which` for the message; those before it are set
    aside. Raises as `newest_good`."""
    bad: dict[int, list[str]] = {}
    for step in candidates:
        faults = _confirmed(checkpoints, step)
        if not faults:
            _set_aside(checkpoints, bad)
            return step
        bad[step] = faults
    raise DamagedCheckpoint(
        f"no checkpoint in {checkpoints.directory}{which} is whole:{_listed(bad)}\n"
        "restore that directory from a copy, or train in another workdir"
    )


def _set_aside(checkpoints: Checkpoints, bad: Mapping[int, list[str]]) -> None:
    """{step: what is wrong with it}; for all processes, and they are told."""
    if not bad:
        return
    if distributed.is_writer():
        for step in bad:
            place = checkpoints.set_aside(step)
            print(f"warning: checkpoint {step} is damaged, set aside in {place}", file=sys.stderr)
        print(_listed(bad).lstrip("\n"), file=sys.stderr, flush=True)
    distributed.told(True)  # it is done
    checkpoints.reload()
    checkpoints.agreed_steps()


def _listed(bad: Mapping[int, list[str]]) -> str:
    return "".join(
        f"\n  step {step}: {line}" for step, lines in bad.items() for line in _said(lines)
    )


def _confirmed(checkpoints: Checkpoints, step: int) -> list[str]:
    """The faults of a step that are in its files, and not in who reads them: a share in which a
    process finds one is read again by the next process, whose disk or memory is another."""
    index, count = jax.process_index(), jax.process_count()
    first = distributed.told(checkpoints.faults(step, index, count))
    if not any(first):
        return []
    share = (index + 1) % count
    again = distributed.told(checkpoints.faults(step, share, count) if first[share] else [])
    faults: set[str] = set()
    for share, found in enumerate(first):
        if again[(share - 1) % count]:
            faults.update(found)
        elif found and distributed.is_writer():
            print(
                f"warning: checkpoint {step} could not be read by process {share}, and could be "
                f"when it was read again: {found[0]}",
                file=sys.stderr,
            )
    return sorted(faults)


def check_none_lost(workdir: pathlib.Path, every: int) -> None:
    """Of a run without any checkpoint: nothing begins anew where there must have been some.

    Raises:
      DamagedCheckpoint: the run has been further than two saves, or has set damaged ones aside.
    """
    # While the second save runs the first may be lost to a kill, and after it it is not.
    rows = read_metrics(workdir) if distributed.is_writer() else []
    done = max((row["step"] for row in rows), default=0)
    bad = workdir / "checkpoints_bad"
    aside = bad.is_dir() and any(bad.iterdir())
    done, aside = distributed.told([done, aside])[0]
    if done > 2 * every or aside:
        raise DamagedCheckpoint(
            f"{workdir} has no checkpoint, and "
            + (f"metrics.jsonl tells of step {done}" if done else f"{bad.name} has some")
            + f": restore its checkpoints from a copy, use another workdir, or remove "
            f"{workdir}/metrics.jsonl and {bad.name} to begin anew"
        )


def _said(lines: list[str]) -> list[str]:
    more = len(lines) - SAID
    return lines[:SAID] + ([f"and {more} more"] if more > 0 else [])
