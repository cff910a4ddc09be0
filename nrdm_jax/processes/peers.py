"""What the processes of a job know of each other beside what jax does: who is silent, who has left
and why, and who was told to stop.

jax ends a process when another one dies, by SIGABRT and without saying which. Here each process
writes a beat to the coordination service; process 0 reads them all and writes down what it finds,
which the others read: two small calls a process, whatever their number. A beat needs Python's lock,
which a long call of a library may hold: so jax's own heartbeats, which do not, are the first to
decide that a process is dead, and silence here is what names it.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

from nrdm_jax.processes import exit_codes
from nrdm_jax.processes.watchdog import Awake

BEAT = 2.0  # seconds
NAMED = 10.0  # seconds of silence after which a process is suspected
# Seconds after which it is held for lost even if jax still hears of it: it is stuck inside a
# library that holds Python's lock.
LOST = 120.0
_handlers: list = []  # that C calls, as long as the process lives
_BEATS, _FOUND = "nrdm_jax/beats/", "nrdm_jax/found"


class Peers:
    """The other processes, as this one knows them.

    Args:
      client: of the coordination service.
      process, count: which this one is, of how many.
      coordinator: HOST:PORT of process 0.
      leave: (exit code, message) ends this process.
    """

    def __init__(
        self,
        client: Any,
        process: int,
        count: int,
        coordinator: str,
        leave: Callable[[int, str], None],
    ):
        self._client, self._process, self._count = client, process, count
        self._coordinator, self._leave = coordinator, leave
        self._awake = Awake()
        self._note = ""
        self._number = 0
        self._heard = {p: (0.0, "") for p in range(count) if p != process}
        self._reached = 0.0  # when the service last answered
        self.silent: dict[int, float] = {}
        self.left: dict[int, int] = {}
        self.stopping: list[int] = []
        self.nothing_to_save: Callable[[], bool] = lambda: True
        self.leaving: int | None = None  # this process's own exit code, once it has one
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peers", daemon=True)
        self._clock = threading.Thread(target=self._tick, name="peers' clock", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._clock.start()

    def stop(self) -> None:
        """Of the beats; to be called before the client is shut down."""
        self._ended.set()
        self._thread.join(timeout=BEAT)

    def note(self, text: str) -> None:
        """Says `stopping`, or `left CODE`, to all others, if the service still answers."""
        self._note = text
        sent = threading.Thread(target=self._send, name="farewell", daemon=True)
        sent.start()
        sent.join(timeout=BEAT)

    def _send(self) -> None:
        self._number += 1
        beat = f"{self._number} {self._note}"
        try:
            self._client.key_value_set(f"{_BEATS}{self._process}", beat, allow_overwrite=True)
        except Exception:  # jaxlib's own type; `lost` tells, from how long it has been silent
            return
        self._reached = self._awake()

    def _run(self) -> None:
        while not self._ended.wait(BEAT):
            self.beat()

    def _tick(self) -> None:
        """The clock is asked while a beat waits for a service that does not answer."""
        while not self._ended.wait(BEAT):
            self._awake()

    def beat(self) -> None:
        """Is heard of, and hears of the others; ends this process where one has been silent for
        `LOST` seconds. To be called every `BEAT` seconds."""
        self._send()
        now = self._awake()
        with contextlib.suppress(Exception):  # as in `_send`
            if self._process == 0:
                self._collect(now)
            else:
                self._read()
        self.silent |= self._unreached(now)
        for process, seconds in self.silent.items():
            if seconds > LOST and not self._ended.is_set():
                self._leave(exit_codes.PEER_LOST, _silence(process, seconds))

    def _unreached(self, now: float) -> dict[int, float]:
        """The coordinator, if it is silent, which only the silence of its service tells."""
        seconds = now - self._reached
        return {0: seconds} if self._process and seconds > NAMED else {}

    def _collect(self, now: float) -> None:
        for key, beat in self._client.key_value_dir_get(_BEATS):
            process = int(key.rsplit("/", 1)[-1])
            if process in self._heard and self._heard[process][1] != beat:
                self._heard[process] = (now, beat)
        notes = {p: beat.partition(" ")[2] for p, (_, beat) in self._heard.items()}
        notes[0] = self._note
        found = {
            "left": {p: int(n.split()[1]) for p, n in notes.items() if n.startswith("left")},
            "stopping": [p for p, note in notes.items() if note == "stopping"],
        }
        found["silent"] = {
            p: now - since
            for p, (since, _) in self._heard.items()
            if now - since > NAMED and p not in found["left"]
        }
        self._take(found)
        self._client.key_value_set(_FOUND, json.dumps(found), allow_overwrite=True)

    def _read(self) -> None:
        # Before process 0 has written it there is no such key, which is an error.
        self._take(json.loads(self._client.key_value_try_get(_FOUND)))

    def _take(self, found: dict) -> None:
        mine = self._process
        self.silent = {int(p): s for p, s in found["silent"].items() if int(p) != mine}
        self.left = {int(p): c for p, c in found["left"].items() if int(p) != mine}
        self.stopping = found["stopping"]

    def stop_is_near(self) -> bool:
        """Whether any process was told to stop, or has left because of that."""
        return bool(self.stopping) or exit_codes.PREEMPTED in self.left.values()

    def lost(self, *, probe: bool = False) -> str | None:
        """Which process is lost, in words; None where none is known to be. With `probe`, the
        coordinator is called as well."""
        for process, code in self.left.items():
            if code not in (exit_codes.DONE, exit_codes.PREEMPTED):
                return f"process {process} has left with exit code {code}; see what it says"
        if silent := self.silent | self._unreached(self._awake()):
            return "; ".join(_silence(p, s) for p, s in sorted(silent.items()))
        if probe and self._process and not self._coordinator_answers():
            return "process 0, the coordinator, has ended; see what it says"
        return None

    def _coordinator_answers(self) -> bool:
        host, _, port = self._coordinator.rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=2.0):
                return True
        except OSError:
            return False

    def code_of_abort(self) -> tuple[int, str] | None:
        """What an abort of this process means: (exit code, message); None: not what the others
        did."""
        if self.leaving is not None:
            return self.leaving, ""
        if self.stop_is_near():
            if self.nothing_to_save():
                return exit_codes.PREEMPTED, "another process was preempted; nothing was to save"
            return exit_codes.PEER_LOST, "a process that was preempted left before all had saved"
        lost = self.lost(probe=True)
        return None if lost is None else (exit_codes.PEER_LOST, lost)

    def await_loss(self, seconds: float) -> str | None:
        """As `lost`, for an error that may be of a loss that shows only after some time; None
        where it is of a stop: a coordinator that was told to has ended as well."""
        ended, until = threading.Event(), self._awake() + seconds
        while not self.stop_is_near():
            if (found := self.lost(probe=True)) is not None or self._awake() >= until:
                return found
            ended.wait(0.5)
        return None


def _silence(process: int, seconds: float) -> str:
    name = f"process {process}" + (", the coordinator," if process == 0 else "")
    return f"{name} has not been heard of for {seconds:.0f} s"


def on_abort(decide: Callable[[], tuple[int, str] | None]) -> None:
    """From now on an abort, as which jax ends a process when another one is lost or does not come,
    ends it with the exit code and the message that `decide` gives; without them it is an abort.

    The handler is called on the thread that aborts, which may be none of Python's.
    """
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def handler(number: int) -> None:
        try:
            decided = decide()
        except Exception as error:  # nothing may pass through C
            os.write(2, f"while aborting: {error}\n".encode())
            return
        if decided is not None:
            code, message = decided
            if message:
                with contextlib.suppress(OSError):  # of a log on the disk that is full
                    os.write(2, f"error: {message}\n".encode())
            os._exit(code)

    libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    _handlers.append(handler)


def handler_of(number: int) -> Callable[[int], None] | None:
    """The function that a C library has for a signal: to be called with the signal's number once
    another one has taken its place."""
    libc, action = ctypes.CDLL(None), ctypes.create_string_buffer(512)
    if libc.sigaction(number, None, action):
        return None
    # The function is the first member of struct sigaction, on Linux and macOS.
    address = ctypes.cast(action, ctypes.POINTER(ctypes.c_void_p))[0]
    if not address or address == int(signal.SIG_IGN):
        return None
    return ctypes.CFUNCTYPE(None, ctypes.c_int)(address)
