"""Runs that are killed at chosen moments and go on, for `kill_test`."""

import dataclasses
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from benchmarks import jobs, recorded_run
from nrdm_jax.checkpointing.kept import PARTIAL

STEPS, SAVE_EVERY, BATCH = 48, 4, 24
LAYOUTS = {1: (), 2: ("--config.mesh.fsdp=2",)}  # processes of a device each -> flags
MOMENTS = ("save", "step", "evaluate", "start")
STARTS = ("init", "restore", "compile")  # sections
SURVIVES = 120.0  # seconds that a process may take to notice that another one was killed
LONG = 600.0  # seconds that nothing takes


@dataclasses.dataclass(frozen=True)
class Kill:
    """What a kill left.

    Attributes:
      attempt: that it ended.
      processes: that were killed.
      begun: the last step that the attempt had begun; 0: none.
      writing: the step that was being written; None: none was.
      committed: the newest step that was, 0: none.
      codes: of the processes that were not killed.
      seconds: that those took to end.
    """

    attempt: int
    processes: list[int]
    begun: int
    writing: int | None
    committed: int
    codes: list[int]
    seconds: float

    @property
    def lost(self) -> int:
        """Steps that are done again: up to the one that was being written, of a kill in a save,
        since the steps that run beside it are not waited for."""
        last = self.begun if self.writing is None else self.writing
        return max(last - self.committed, 0)


@dataclasses.dataclass
class Run:
    """A run, over all processes that it takes.

    Attributes:
      home: of its workdir, its records and what its processes say.
      config: its file.
      processes: of each attempt.
      cache: of compiled programs.
      attempts: so far.
      kills: that ended attempts.
    """

    home: pathlib.Path
    config: str
    processes: int
    cache: pathlib.Path
    attempts: int = 0
    kills: list[Kill] = dataclasses.field(default_factory=list)

    @property
    def workdir(self) -> pathlib.Path:
        return self.home / "run"

    def start(self) -> list[subprocess.Popen]:
        """The next attempt: the same command each time, but for the port of several processes."""
        self.home.mkdir(exist_ok=True)
        self.attempts += 1
        command = [
            sys.executable, "-m", "benchmarks.recorded_run", f"--config={self.config}",
            f"--workdir={self.workdir}", "--config.data.name=synthetic", "--config.model.depth=1",
            f"--config.train.batch_size={BATCH}", f"--config.train.steps={STEPS}",
            "--config.train.ema_widths=(0.1,)", "--config.train.ema_snapshots=4",
            f"--config.checkpoint.every={SAVE_EVERY}", "--config.log.every=2",
            "--config.log.sensitivity_every=0", "--config.evaluate.every=6",
            *LAYOUTS[self.processes],
        ]  # fmt: skip
        variables = jobs.variables(optimized=False) | {
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        commands = [
            [*command, f"--record={self._record(self.attempts, i)}", *each]
            for i, each in enumerate(jobs.meeting(self.processes))
        ]
        return jobs.start(commands, self.logs(), variables)

    def _record(self, attempt: int, process: int) -> pathlib.Path:
        return self.home / f"{attempt:03}.{process}.jsonl"

    def logs(self) -> list[pathlib.Path]:
        """Of this attempt."""
        return [self.home / f"{self.attempts:03}.{i}.log" for i in range(self.processes)]

    def told(self, attempt: int, kind: str) -> list[dict]:
        """Those lines of the records of an attempt."""
        found = (recorded_run.read(self._record(attempt, i)) for i in range(self.processes))
        return [line for lines in found for line in lines if kind in line]

    def count(self, text: str) -> int:
        """How often this attempt's first process has told so; the lines are not taken apart, since
        whoever waits asks often."""
        record = self._record(self.attempts, 0)
        return record.read_text().count(text) if record.exists() else 0

    def half_written(self) -> set[int]:
        """Steps. What an earlier attempt has left is gone when the first step begins."""
        if not self.count('"restored"'):
            return set()
        names = (path.name for path in (self.workdir / "checkpoints").glob(f"*{PARTIAL}*"))
        return {int(name.partition(".")[0]) for name in names}

    def committed(self) -> int:
        """The newest step that is; 0: none."""
        names = (path.name for path in (self.workdir / "checkpoints").glob("*"))
        return max((int(name) for name in names if name.isdigit()), default=0)

    def finish(self) -> None:
        """Goes on to the end.

        Raises:
          RuntimeError: it does not get there.
        """
        jobs.finish(self.start(), self.logs(), LONG)

    def kill(self, when: str, draw: random.Random) -> Kill | None:
        """Goes on until a moment of that kind, and kills one process or all; None: the run was
        finished before.

        Raises:
          RuntimeError: it failed by itself.
        """
        started = self.start()
        has_come, deadline = self._moment(when, draw), time.monotonic() + LONG
        later = draw.uniform(0.0, 0.02 if when == "save" else 0.05)
        victims = draw.choice([[0], [1], [0, 1]]) if self.processes > 1 else [0]
        while not has_come() and all(process.poll() is None for process in started):
            if time.monotonic() > deadline:
                break
            time.sleep(0.002)
        time.sleep(later)
        if any(process.poll() is not None for process in started):
            jobs.finish(started, self.logs(), LONG)
            return None
        for i in victims:
            started[i].send_signal(signal.SIGKILL)
        for i in victims:
            started[i].wait()
        at, writing = time.monotonic(), max(self.half_written(), default=None)
        others = [process for i, process in enumerate(started) if i not in victims]
        codes = jobs.ended(others, SURVIVES)
        begun = max((line["step"] for line in self.told(self.attempts, "step")), default=0)
        found = Kill(
            self.attempts, victims, begun, writing, self.committed(), codes, time.monotonic() - at
        )
        self.kills.append(found)
        return found

    def _moment(self, when: str, draw: random.Random) -> Callable[[], bool]:
        """Whether it has come, to be asked again and again."""
        steps, section, skipped = (
            draw.randint(1, 2 * SAVE_EVERY), draw.choice(STARTS), draw.randint(0, 1)
        )  # fmt: skip
        seen: set[int] = set()

        def is_written() -> bool:
            seen.update(self.half_written())
            return len(seen) > skipped

        return {
            "save": is_written,
            "step": lambda: self.count('{"step"') >= steps,
            "evaluate": lambda: self.count('{"section": "evaluate"') > skipped,
            "start": lambda: self.count(f'{{"section": "{section}"') > 0,
        }[when]
