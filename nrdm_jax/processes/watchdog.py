"""A process that is stuck: how it is noticed, and what it says before it is ended.

What works says where it is (`enter`) and that it goes on (`beat`): an assignment each. A thread
looks at that now and then, by a clock that does not run while the process is stopped.
"""

import contextlib
import os
import pathlib
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping

TICK = 1.0  # seconds between looks
# A look that comes later than this after the one before: the process did not run (SIGSTOP, a
# machine asleep, a clock that jumped), and what it did not do meanwhile is not held against it.
LONGEST = 5.0
TOLD = 5.0  # seconds that a disk or a reader has for what is told
# So many rounds of a section may each take as long as a compilation: they compile or tune kernels.
FIRST_ROUNDS = 2

# Where the account of time has another name for it.
_NAMES = {"init": "start", "restore": "start", "score": "evaluate", "report": "evaluate"}


class Awake:
    """Seconds that its caller was running, by a monotonic clock: () -> s. To be called often."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._last = clock()
        self._total = 0.0

    def __call__(self) -> float:
        now = self._clock()
        self._total += min(max(now - self._last, 0.0), LONGEST)
        self._last = now
        return self._total


class Watchdog:
    """Whether the process goes on.

    Args:
      limits: section -> seconds that may pass in it without a beat; 0: any. The first rounds of a
        section may take what `compile` may. A section without a limit has that of `step`.
      section: that the process is in.
      clock: -> seconds, monotonic.
    """

    def __init__(
        self,
        limits: Mapping[str, float],
        section: str = "start",
        clock: Callable[[], float] = time.monotonic,
    ):
        self._limits = dict(limits)
        self.section = section
        self._rounds: dict[str, int] = {}
        self._entered = 0
        self._awake = Awake(clock)
        self._seen: tuple | None = None
        self._since = 0.0

    def enter(self, section: str) -> None:
        """What comes now; one section after another, none within another."""
        self.beat()
        self._entered += 1
        self.section = _NAMES.get(section, section)

    def beat(self) -> None:
        """A round of the section is done."""
        section = self.section
        self._rounds[section] = self._rounds.get(section, 0) + 1

    def limit(self) -> float:
        """Seconds without a beat that the section has now; 0: any."""
        limits = self._limits
        own = limits.get(self.section, limits.get("step", 0.0))
        if self._rounds.get(self.section, 0) >= FIRST_ROUNDS:
            return own
        compiling = limits.get("compile", 0.0)
        return max(own, compiling) if own and compiling else 0.0

    def hang(self) -> str | None:
        """What is said of a process that is stuck, None of one that is not. To be called every
        `TICK` seconds, always by one thread."""
        now, section = self._awake(), self.section
        seen = (section, self._entered, self._rounds.get(section, 0))
        if seen != self._seen:
            self._seen, self._since = seen, now
        limit = self.limit()
        if not limit or now - self._since <= limit:
            return None
        return (
            f"nothing has happened in section {section} for {now - self._since:.0f} s "
            f"(watchdog.{section}={limit:g})"
        )


def stacks(section: str) -> str:
    """The Python stacks of all threads, each with the thread's name."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = [f"stacks of all threads, in section {section}:"]
    for ident, frame in sys._current_frames().items():
        parts.append(f"thread {names.get(ident, ident)} (most recent call last):")
        parts.append("".join(traceback.format_stack(frame)).rstrip())
    return "\n".join(parts) + "\n"


def tell(action: Callable[[], object]) -> None:
    """Does what a full disk or a reader that is gone refuses, and what a disk that hangs never
    ends: without an error, and for `TOLD` seconds. To end does not depend on it."""

    def do() -> None:
        with contextlib.suppress(OSError):
            action()

    thread = threading.Thread(target=do, name="telling", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # Python is ending, and starts none any more
        do()
    else:
        thread.join(timeout=TOLD)


def say(text: str) -> None:
    """To stderr, whatever holds its buffer, and whether or not it can be written."""
    tell(lambda: os.write(2, (text.rstrip() + "\n").encode()))


def write_stacks(text: str, directory: pathlib.Path, name: str) -> None:
    """Keeps stacks beside those of before, where the directory is there and can be written."""
    try:
        if directory.is_dir():
            with (directory / name).open("a") as file:
                file.write(text)
    except OSError as error:
        say(f"warning: {directory / name}: {error}")
