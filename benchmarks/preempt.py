"""SIGTERM to either of two processes, in training, in training that saves at every fifth step,
evaluation, sampling and the first compilation: whether both leave with exit code 75, whether one
step is saved, once, and whether the run that then goes on does so from that step, and has the bits
of one that was never stopped.

  python -m benchmarks.preempt

What evaluates and samples has nothing to save, and so has a run before its first step: there all
that counts is that both leave, and that the run's checkpoints stay as they are. Seconds to leave
are those from the signal to the end of the second process. Exits 1 unless all is as it should be.
"""

import dataclasses
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from absl import flags

from benchmarks import jobs, measuring, resume
from nrdm_jax.processes import exit_codes, lifecycle

STEPS = 300
SAVE_EVERY = {"save": 5}  # steps
RARELY = 1000
LONG = 1200.0  # seconds for what should take a few, or on a machine with much else to do a lot
# What process 0 has said when the signal comes, and how many seconds later.
CASES = {
    "train": ("step=10/", 0.0),
    "save": ("step=10/", 0.0),
    "evaluate": ("scoring the ", 2.0),
    "sample": ("drawing ", 2.0),
    "compile": (": new run", 1.0),
}


def define_flags() -> None:
    flags.DEFINE_string("config", "configs/openmoji32.py:smoke", "of the run")
    flags.DEFINE_list("cases", list(CASES), "of them")


@dataclasses.dataclass(frozen=True)
class Stopped:
    """What came of a signal.

    Attributes:
      codes: exit codes of both processes.
      seconds: until both had ended.
      log: what process 0 said.
      in_time: whether the work was not over when the signal came.
    """

    codes: list[int]
    seconds: float
    log: str
    in_time: bool


def train_command(workdir: pathlib.Path, save_every: int) -> list[str]:
    return measuring.train_command(
        workdir,
        f"--config.train.steps={STEPS}",
        f"--config.checkpoint.every={save_every}",
        f"--config.checkpoint.keep={STEPS}",
        "--config.log.every=10",
        "--config.log.sensitivity_every=0",
    )


def command(case: str, workdir: pathlib.Path, scratch: pathlib.Path) -> list[str]:
    if case == "evaluate":
        return [sys.executable, "-m", "nrdm_jax.evaluate", f"--workdir={workdir}",
                "--samples=20000"]  # fmt: skip
    if case == "sample":
        return [sys.executable, "-m", "nrdm_jax.sample", f"--workdir={workdir}",
                "--seeds=0-49999", f"--out={scratch / 'samples'}"]  # fmt: skip
    return train_command(workdir, SAVE_EVERY.get(case, RARELY))


def start(command: list[str], log: pathlib.Path, cache: pathlib.Path) -> list[subprocess.Popen]:
    """Two processes; what each says goes to LOG.0 and LOG.1."""
    commands = [[*command, *each] for each in jobs.meeting(2)]
    variables = jobs.variables() | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    return jobs.start(commands, logs_of(log), variables)


def logs_of(log: pathlib.Path) -> list[pathlib.Path]:
    return [pathlib.Path(f"{log}.{i}") for i in range(2)]


def finish(command: list[str], log: pathlib.Path, cache: pathlib.Path) -> None:
    """Raises:
    RuntimeError: a process failed, with what it said last.
    """
    jobs.finish(start(command, log, cache), logs_of(log), LONG)


def stopped(
    case: str, to: int, command: list[str], log: pathlib.Path, cache: pathlib.Path
) -> Stopped:
    """Sends SIGTERM to process `to` when the work of the case is on its way."""
    said, later = CASES[case]
    processes = start(command, log, cache)
    first = pathlib.Path(f"{log}.0")
    deadline = time.monotonic() + LONG
    while said not in first.read_text() and processes[0].poll() is None:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    time.sleep(later)
    over = "RESULT" in first.read_text() or any(p.poll() is not None for p in processes)
    if case == "compile":
        over = over or "train step compiled" in first.read_text()
    before = time.monotonic()
    processes[to].send_signal(signal.SIGTERM)
    codes = jobs.ended(processes, LONG)
    return Stopped(codes, time.monotonic() - before, first.read_text(), not over)


def is_saved_once(workdir: pathlib.Path, found: Stopped, every: int) -> bool:
    """The step that was said is committed, beside those of `every` steps before it, and nothing is
    half written."""
    names = {path.name for path in (workdir / "checkpoints").iterdir()}
    said = said_of_save(found.log)
    regular = range(every, max(said, default=0), every)
    return len(said) == 1 and names == {str(step) for step in (*regular, *said)}


def said_of_save(log: str) -> list[int]:
    """The steps that a process says it saved as it was stopped."""
    return [int(step) for step in re.findall(r": saved step (\d+) of ", log)]


def run() -> int:
    wanted = [case for case in CASES if case in flags.FLAGS.cases]
    rows = {}
    with tempfile.TemporaryDirectory() as directory:
        home = pathlib.Path(directory)
        cache = home / "cache"
        whole = home / "whole"
        finish(train_command(whole, RARELY), home / "whole.log", cache)
        reference = resume.digest(whole)
        print(f"never stopped: step {reference[1]}, sha256 {reference[0]}", flush=True)
        for case in wanted:
            for to in (0, 1):
                name = f"{case}-{to}"
                trains = case in ("train", "save", "compile")
                workdir = home / name if trains else whole
                work = command(case, workdir, home / name)
                # A program that is in the cache is not compiled.
                of_case = home / f"{name}.cache" if case == "compile" else cache
                found = stopped(case, to, work, home / f"{name}.log", of_case)
                row = {
                    "codes": found.codes,
                    "right": found.codes == [exit_codes.PREEMPTED] * 2 and found.in_time,
                    "seconds": round(found.seconds, 2),
                }
                saves = case in ("train", "save")
                if saves:
                    row["saved_once"] = is_saved_once(workdir, found, SAVE_EVERY.get(case, RARELY))
                if trains:
                    again = home / f"{name}.again.log"
                    finish(work, again, cache)
                if saves:
                    begun = resume.restored(logs_of(again)[0].read_text())
                    row["saved_once"] &= said_of_save(found.log) == [begun]
                row["bitwise"] = resume.digest(workdir) == reference
                rows[name] = row
                print(f"SIGTERM to process {to} in {case}: {row}", flush=True)
                if not row["right"]:
                    for log in logs_of(home / f"{name}.log"):
                        print(f"{log.name}:\n{log.read_text()[-3000:]}", flush=True)
    result = {
        "saved_once": all(row.get("saved_once", True) for row in rows.values()),
        "exit_codes_right": all(row["right"] for row in rows.values()),
        "bitwise": all(row["bitwise"] for row in rows.values()),
        "seconds_to_leave": statistics.median(row["seconds"] for row in rows.values()),
        "most_seconds_to_leave": max(row["seconds"] for row in rows.values()),
        "cases": rows,
    }
    measuring.print_result(result)
    return 0 if all(result[key] for key in ("saved_once", "exit_codes_right", "bitwise")) else 1


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
