"""What ends a process from outside, or because it is stuck: signals, and the watchdog.

A thread looks at both, so that neither has to wait for the main thread, which may be in a
compilation, in a collective or in a deadlock.
"""

import contextlib
import faulthandler
import os
import pathlib
import select
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence

from nrdm_jax.processes import distributed, exit_codes, watchdog
from nrdm_jax.processes.exit_codes import Stop
from nrdm_jax.processes.faults import Fault
from nrdm_jax.processes.watchdog import say

PATIENCE = 5.0  # seconds
LOCKED = 60.0  # seconds over the watchdog's limit that Python's lock may be held
_END = 0  # through the pipe, where numbers of signals come through
_installed: list["Signals"] = []  # one within another: the innermost knows what there is to save


class Signals:
    """SIGTERM and SIGINT become a request that long loops poll; a second one leaves at once. Of
    several processes, all stop at one poll: they must poll equally often.

    A process that has nothing to save (`unsaved`) and comes to no poll leaves without one, as
    during a compilation: after `patience` seconds. Each poll is a beat for the watchdog.

    Args:
      limits: of the watchdog, by section; without any it never ends a process.
      section: that the process is in.
      workdir: where the stacks of a process that is stuck are written, to stacks.txt, and of
        several to stacks.I.txt.
      patience: seconds.
      faults: a drill: what is to go wrong.

    Attributes:
      received: the signal.
      unsaved: whether there is work that a stop must save.
      limits, faults: as given.
    """

    def __init__(
        self,
        limits: Mapping[str, float] | None = None,
        section: str = "start",
        *,
        workdir: pathlib.Path | None = None,
        patience: float = PATIENCE,
        faults: Sequence[Fault] = (),
    ):
        self.received: str | None = None
        self.unsaved = False
        self.limits, self.faults = dict(limits or {}), tuple(faults)
        self._agreed = False
        self._polls = 0
        self._watchdog = watchdog.Watchdog(self.limits, section)
        self._workdir, self._patience = workdir, patience
        self._awake = watchdog.Awake()
        self._asked: float | None = None  # when a stop was asked for, or was last polled for
        self._polled = 0

    def enter(self, section: str) -> None:
        """What the process does now, for the watchdog."""
        self._watchdog.enter(section)

    def stop_requested(self) -> bool:
        """Whether to stop here."""
        self._polls += 1
        self._watchdog.beat()
        if not distributed.active():
            return self.received is not None
        # jax counts the polls of all until they agree on one.
        if not self._agreed and distributed.preempted():
            self._agreed = True
            self.received = self.received or "SIGTERM"
        return self._agreed

    def check(self) -> None:
        """Raises:
        Stop: a signal came, and there is nothing to save.
        """
        if self.stop_requested():
            raise Stop(exit_codes.PREEMPTED, f"{self.received} received; nothing was left to save")

    @contextlib.contextmanager
    def installed(self, numbers: Sequence[int] = (signal.SIGTERM, signal.SIGINT)) -> Iterator:
        """The signals come here, and the watchdog looks, until the end of the block."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)

        def handler(number, frame):
            # Python has written it to the pipe before, from whichever thread; unless a library has
            # put its own pipe there.
            before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
            if before != writer:
                os.write(writer, bytes([number]))

        outer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        pause = [signal.SIGTSTP] if self.limits else []
        old = {n: signal.signal(n, handler) for n in (*numbers, *pause)}
        thread = threading.Thread(target=self._watch, args=(reader,), name="signals", daemon=True)
        _installed.append(self)
        thread.start()
        distributed.peers_ask(lambda: not self.unsaved)
        try:
            yield self
        finally:
            _installed.remove(self)
            for number, previous in old.items():
                signal.signal(number, previous)
            signal.set_wakeup_fd(outer, warn_on_full_buffer=False)
            os.write(writer, bytes([_END]))
            thread.join()
            if self.limits:
                faulthandler.cancel_dump_traceback_later()
            os.close(reader)
            os.close(writer)

    def _watch(self, reader: int) -> None:
        while True:
            self._await_lock()
            ready, _, _ = select.select([reader], [], [], watchdog.TICK)
            for number in os.read(reader, 64) if ready else b"":
                if number == _END:
                    return
                if number == signal.SIGTSTP:
                    _pause()
                else:
                    self._take(number)
            if (what := self._watchdog.hang()) is not None:
                self._end_stuck(what)
            self._leave_if_idle()

    def _await_lock(self) -> None:
        """A process that is stuck with Python's lock held is ended by a thread of C, with its
        stacks and exit code 1, unless this is called in time. A slow one comes by: every few
        milliseconds the lock is handed on."""
        if not self.limits or next(reversed(_installed), self) is not self:
            return
        if not (limit := self._watchdog.limit()):
            faulthandler.cancel_dump_traceback_later()
            return
        seconds = min(limit + LOCKED, threading.TIMEOUT_MAX)
        with contextlib.suppress(RuntimeError):  # no thread is to be had now
            faulthandler.dump_traceback_later(seconds, exit=True, file=2)

    def _take(self, number: int) -> None:
        name = signal.Signals(number).name
        if self.received:
            say(f"{name} received again, leaving at once")
            os._exit(128 + number)
        self.received = name
        distributed.tell_stop()
        say(f"{name} received, stopping after this step")

    def _leave_if_idle(self) -> None:
        """A stop was asked for here or elsewhere, and there is nothing to save."""
        now = self._awake()
        leaving = self._watchdog.section == "exit"  # what is closed there has a limit of its own
        within = next(reversed(_installed), self) is not self
        if within or leaving or self.unsaved or not (self.received or distributed.stop_is_near()):
            self._asked = None
            return
        if self._asked is None or self._polls != self._polled:
            self._asked, self._polled = now, self._polls
        # Of several, all hear of it within two beats.
        patience = max(self._patience, PATIENCE) if distributed.active() else self._patience
        if now - self._asked >= patience:
            what = f"{self.received} received" if self.received else "another process was preempted"
            leave_at_once(exit_codes.PREEMPTED, f"{what}; nothing was left to save")

    def _end_stuck(self, what: str) -> None:
        def text() -> str:  # which reads the sources' lines from a disk
            return f"{what}\n{watchdog.stacks(self._watchdog.section)}"

        watchdog.tell(lambda: say(text()))
        if (workdir := self._workdir) is not None:
            name = f"stacks.{distributed.index()}.txt" if distributed.active() else "stacks.txt"
            watchdog.tell(lambda: watchdog.write_stacks(text(), workdir, name))
        leave_at_once(exit_codes.PEER_LOST, what)


def _pause() -> None:
    """Stops at Ctrl-Z, without the timer, to which the pause would be a hang."""
    faulthandler.cancel_dump_traceback_later()
    # Of this thread, all stop before its next line.
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def leave_at_once(code: int, message: str) -> None:
    """Ends the process from any thread: nothing is closed, the others are told."""
    say(f"error: {message}")
    distributed.tell_leaving(code)
    os._exit(code)
