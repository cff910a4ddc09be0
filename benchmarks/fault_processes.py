"""Processes of the package that faults befall, for the rows of `process_faults`."""

import dataclasses
import functools
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import IO

from benchmarks import jobs
from benchmarks.fault_rows import ROOT, Answer, first_line

STEPS, SAVE_EVERY = 12, 4
TRAIN = (
    "--config=configs/openmoji32.py:smoke", "--config.data.name=synthetic",
    "--config.model.depth=1", "--config.model.width=64", f"--config.train.steps={STEPS}",
    f"--config.checkpoint.every={SAVE_EVERY}", "--config.evaluate.every=0", "--config.log.every=1",
    "--config.log.sensitivity_every=0",
)  # fmt: skip
LONG = 600.0  # seconds that nothing takes
_kept: list[tempfile.TemporaryDirectory] = []  # until the end of this process


@dataclasses.dataclass(frozen=True)
class Ended:
    """Attributes:
    codes: exit codes of the processes that are looked at.
    said: by them, to both streams.
    """

    codes: list[int]
    said: str

    def answer(self, part: str) -> Answer:
        """The code, where all have the same; and the line that has the part, else the error's."""
        line = next((x for x in self.said.splitlines() if part in x), first_line(self.said))
        if len(set(self.codes)) > 1:
            return -1, f"exit codes {self.codes}: {line}"
        return self.codes[0], line.strip()


class Job:
    """Processes of one command, from now on.

    Args:
      place: of what each says, NAME.I.log.
      name: of those.
      command: an entry and its arguments.
      processes: that are one job, if there are several.
      under: a command that runs them.
    """

    def __init__(
        self,
        place: pathlib.Path,
        name: str,
        *command: str,
        processes: int = 1,
        under: Sequence[str] = (),
    ):
        variables = jobs.variables(optimized=False) | {"TFDS_DATA_DIR": str(place / "data")}
        self._logs = [place / f"{name}.{i}.log" for i in range(processes)]
        self._started: list[subprocess.Popen] = []
        self._readers: list[threading.Thread] = []
        entry, *arguments = command
        for log, several in zip(self._logs, jobs.meeting(processes), strict=True):
            each = [*under, sys.executable, "-m", f"nrdm_jax.{entry}", *arguments, *several]
            log.touch()
            process = subprocess.Popen(
                each, cwd=ROOT, env=os.environ | variables, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
            self._started.append(process)
            # Through a pipe: a disk that is full to a process is full to a log that it writes.
            reader = threading.Thread(target=_copy, args=(process.stdout, log), daemon=True)
            reader.start()
            self._readers.append(reader)

    def said(self, process: int = 0) -> str:
        return self._logs[process].read_text(errors="replace")

    def wait_for(self, text: str, process: int = 0) -> None:
        """Returns when the process has said it, or has ended."""
        deadline = time.monotonic() + LONG
        while text not in self.said(process) and self._started[process].poll() is None:
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)

    def send(self, number: signal.Signals, process: int = 0) -> None:
        self._started[process].send_signal(number)

    def ended(self, *looked_at: int) -> Ended:
        """Of these processes, by default of all; the others are killed when these have ended."""
        chosen = looked_at or range(len(self._started))
        try:
            codes = [self._started[i].wait(timeout=LONG) for i in chosen]
        except subprocess.TimeoutExpired:
            codes = [-signal.SIGKILL]
        finally:
            for process in self._started:
                process.kill()
                process.wait()
            for reader in self._readers:
                reader.join(timeout=10)
        return Ended(codes, "\n".join(map(self.said, chosen)))


def _copy(stream: IO[bytes], log: pathlib.Path) -> None:
    with log.open("ab", buffering=0) as file:
        for line in stream:
            file.write(line)


def ran(place: pathlib.Path, *command: str, under: Sequence[str] = ()) -> Ended:
    """What one process ended with."""
    return Job(place, command[0], *command, under=under).ended()


def trained(place: pathlib.Path, *arguments: str, workdir: pathlib.Path | None = None) -> Ended:
    """The same of the small run, in `place`/run."""
    return ran(place, "train", *TRAIN, f"--workdir={workdir or place / 'run'}", *arguments)


def trained_by_two(place: pathlib.Path, fault: str, *looked_at: int) -> Ended:
    """The same of two processes, which go on for long if nothing befalls them."""
    # Who is stopped is found dead within half a minute: a watchdog is to be later, but of a hang.
    watchdog = 30 if fault.startswith("hang") else 120
    job = Job(
        place, "train", "train", *TRAIN, f"--workdir={place / 'run'}", f"--fault={fault}",
        "--config.train.steps=100000", "--config.checkpoint.every=1000",
        "--config.log.every=100", f"--config.watchdog.step={watchdog}",
        f"--config.watchdog.data={watchdog}",
        processes=2,
    )  # fmt: skip
    return job.ended(*looked_at)


@functools.cache
def _finished() -> pathlib.Path:
    _kept.append(tempfile.TemporaryDirectory())
    place = pathlib.Path(_kept[-1].name)
    found = trained(place)
    if any(found.codes):
        raise RuntimeError(f"the run that faults befall did not finish:\n{found.said[-3000:]}")
    return place / "run"


def finished(place: pathlib.Path) -> pathlib.Path:
    """A copy of the small run, finished, in `place`/run."""
    return pathlib.Path(shutil.copytree(_finished(), place / "run"))


def read_only(directory: pathlib.Path) -> list[str]:
    """A command for processes to which the directory is on a read-only file system, even if they
    are root's; where the system allows that to nobody, one that does nothing to them."""
    under = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
             'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"',
             str(directory)]  # fmt: skip
    try:
        done = subprocess.run([*under, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        return []
    return [] if done.returncode else under


def contents(directory: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Path -> size and time of change of all that is below."""
    return {
        str(path.relative_to(directory)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in directory.rglob("*")
    }
