"""Rows of the table of faults that befall real processes: their disks, signals, peers and numbers;
and, from `input_faults`, what they are given."""

import pathlib
import shutil
import signal
import time

from benchmarks.fault_processes import (
    TRAIN,
    Ended,
    Job,
    contents,
    finished,
    ran,
    read_only,
    trained,
    trained_by_two,
)
from benchmarks.fault_rows import Row
from benchmarks.input_faults import CHECKPOINT, DATA, RESUME, Run, small

AT_START = 10.0  # seconds in which a workdir is refused


def rows() -> list[Row]:
    return [
        Row(name, group, code, says, lambda scratch, run=run, says=says: run(scratch).answer(says))
        for group, part in (
            ("disk", DISK), ("process", PROCESS), ("number", NUMBER), ("checkpoint", CHECKPOINT),
            ("data", DATA), ("resume", RESUME),
        )
        for name, code, says, run in part
    ]  # fmt: skip


# Disks.


def without_room(scratch: pathlib.Path) -> Ended:
    """More checkpoints are to be kept than there is room for, whatever the disk."""
    most = shutil.disk_usage(scratch).free // 100_000  # bytes of one: it has more
    return trained(
        scratch, f"--config.train.steps={most}", "--config.checkpoint.every=1",
        f"--config.checkpoint.keep={most}",
    )  # fmt: skip


def refused(scratch: pathlib.Path, workdir: pathlib.Path, under: list[str] | None = None) -> Ended:
    before = time.monotonic()
    found = ran(scratch, "train", *TRAIN, f"--workdir={workdir}", under=under or [])
    seconds = time.monotonic() - before
    return found if seconds <= AT_START else Ended([-1], f"refused after {seconds:.1f} s")


def on_a_read_only_disk(scratch: pathlib.Path) -> Ended:
    place = scratch / "disk"
    place.mkdir()
    under = read_only(place)
    return refused(scratch, place / "run" if under else pathlib.Path("/proc/nrdm"), under)


def in_the_place_of_a_file(scratch: pathlib.Path) -> Ended:
    (scratch / "run").write_text("")
    return refused(scratch, scratch / "run")


def of_a_read_only_run(entry: str, *arguments: str) -> Run:
    def run(scratch: pathlib.Path) -> Ended:
        workdir = finished(scratch)
        before, under = contents(workdir), read_only(workdir)
        out = [f"--out={scratch / 'out'}"] if entry == "sample" else []
        found = ran(scratch, entry, f"--workdir={workdir}", *arguments, *out, under=under)
        if contents(workdir) != before:
            return Ended([-1], "the run was written to")
        return found

    return run


def in_use(scratch: pathlib.Path) -> Ended:
    first = Job(scratch, "first", "train", *TRAIN, f"--workdir={scratch / 'run'}",
                "--fault=hang@step=2")  # fmt: skip
    first.wait_for("drill: hang")
    try:
        return trained(scratch)
    finally:
        first.send(signal.SIGKILL)
        first.ended()


def on_disks_of_their_own(scratch: pathlib.Path) -> Ended:
    """Two processes, each with a workdir that the other does not see."""
    under = ["sh", "-c", 'for last; do :; done; exec "$@" --workdir="$0/${last#--process_id=}"',
             str(scratch)]  # fmt: skip
    job = Job(scratch, "train", "train", *TRAIN, f"--workdir={scratch}", processes=2, under=under)
    return job.ended()


DISK = [
    ("full in a save", 0, "step 8 was not saved: ", small("--fault=enospc@save=2")),
    ("full in the last save", 74, "step 12 was not saved: ", small("--fault=enospc@save=3")),
    ("too small for the checkpoints", 74, " are needed for ", without_room),
    ("read-only workdir", 74, " cannot be written: ", on_a_read_only_disk),
    ("a file in the place of the workdir", 74, " cannot be written: ", in_the_place_of_a_file),
    ("workdir of another run that goes on", 74, "is in use by another run", in_use),
    ("workdirs that are not one directory", 74, " is not one directory to all processes",
     on_disks_of_their_own),
    ("samples of a read-only run", 0, 'RESULT {"samples": 2',
     of_a_read_only_run("sample", "--seeds=0-1", "--steps=2")),
    ("scores of a read-only run", 0, '"heldout_loss": ', of_a_read_only_run("evaluate")),
]  # fmt: skip


# Processes.


def hung(scratch: pathlib.Path) -> Ended:
    found = trained(scratch, "--fault=hang@step=5", "--config.watchdog.step=5")
    written = scratch / "run" / "stacks.txt"
    if not written.exists() or "in hang" not in written.read_text():
        return Ended([-1], "no stacks were written")
    return found


def one_of_two_hung(scratch: pathlib.Path) -> Ended:
    found = trained_by_two(scratch, "hang@step=5:rank=1")
    written = scratch / "run" / "stacks.1.txt"
    if not written.exists() or "in hang" not in written.read_text():
        return Ended([-1], "no stacks were written")
    return found


def one_of_two(fault: str, process: int) -> Run:
    """That is lost: what the other one ends with."""
    return lambda scratch: trained_by_two(scratch, f"{fault}:rank={process}", 1 - process)


def told_to_stop_twice(scratch: pathlib.Path) -> Ended:
    job = Job(scratch, "train", "train", *TRAIN, f"--workdir={scratch / 'run'}",
              "--fault=hang@step=5")  # fmt: skip
    job.wait_for("drill: hang")
    for said in ("SIGTERM received, stopping", "received again"):
        job.send(signal.SIGTERM)
        job.wait_for(said)
    return job.ended()


def alone_of_two(process: int) -> Run:
    """The other one never comes."""

    def run(scratch: pathlib.Path) -> Ended:
        return trained(
            scratch, "--coordinator=127.0.0.1:9", "--num_processes=2", f"--process_id={process}",
            "--start_timeout=5",
        )  # fmt: skip

    return run


PROCESS = [
    ("hangs", 71, "nothing has happened in section step for ", hung),
    ("one of two hangs", 71, "nothing has happened in section step for ", one_of_two_hung),
    ("one of two is killed", 71, "process 1 has not been heard of for ",
     one_of_two("kill@step=5", 1)),
    ("the coordinator is killed", 71, "process 0, the coordinator, has ended",
     one_of_two("kill@step=5", 0)),
    ("one of two is stopped", 71, "process 1 has not been heard of for ",
     one_of_two("stop@step=5", 1)),
    ("the coordinator is stopped", 71, "process 0, the coordinator, has not been heard of for ",
     one_of_two("stop@step=5", 0)),
    ("the coordinator cannot be reached", 71, "the other processes cannot be reached",
     alone_of_two(1)),
    ("the other process never comes", 71, "the other processes cannot be reached",
     alone_of_two(0)),
    ("SIGTERM", 75, "SIGTERM: saved step ", small("--fault=term@step=5")),
    ("SIGTERM to one of two", 75, ": saved step ",
     lambda scratch: trained_by_two(scratch, "term@step=5:rank=1")),
    ("SIGTERM twice", 128 + signal.SIGTERM, "SIGTERM received again, leaving at once",
     told_to_stop_twice),
]  # fmt: skip


# Numbers.

THREE = "--fault=nan@step=6,nan@step=7,nan@step=8"

NUMBER = [
    ("NaN in one step", 0, "the update is skipped; 1 in a row", small("--fault=nan@step=6")),
    ("NaN in three steps", 70, "last good checkpoint: step 4", small(THREE)),
    ("NaN in three steps, with guard.action=rollback", 0, "rollback 1 of 3: restored step 4",
     small(THREE, "--config.guard.action=rollback")),
]  # fmt: skip
