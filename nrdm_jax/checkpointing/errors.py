"""What is wrong with a checkpoint on disk."""

import contextlib
import errno
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

PAUSES = (1.0, 5.0, 15.0)  # seconds between attempts to read; others wait for 30 in a collective
# What the system says of itself or of a network, and not of a file.
_OF_MACHINE = {
    errno.EAGAIN, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EMFILE,
    errno.ENETDOWN, errno.ENETUNREACH, errno.ENFILE, errno.ENOMEM, errno.ENOTCONN, errno.ESTALE,
    errno.ETIMEDOUT,
}  # fmt: skip


class DamagedCheckpoint(Exception):
    """It is not what was saved: exit code 65. Nothing is trained on, or drawn from, by guess."""

    exit_code = 65


class RemovedCheckpoint(DamagedCheckpoint):
    """It is there no longer: exit code 74."""

    exit_code = 74


class CannotBegin(OSError):
    """One of several processes cannot begin what all do."""


def say(line: str) -> None:
    """To stderr, as far as that takes it: a log on the disk that is full ends no run."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def is_of_machine(error: BaseException) -> bool:
    """Whether nothing was learnt of the file that was to be read."""
    return isinstance(error, MemoryError) or _number(error) in _OF_MACHINE


def _number(error: BaseException) -> int | None:
    """The system's, also where tensorstore's ValueError says it."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\[os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else None


def retried(read: Callable[[], T], pauses: Iterator[float] | None = None) -> T:
    """What `read` returns, asked again after a while where that may help: a network that was away,
    or a disk that could not read it that time.

    Args:
      pauses: seconds between attempts, of those that are left to who reads much.
    """
    pauses = iter(PAUSES) if pauses is None else pauses
    while True:
        try:
            return read()
        except Exception as error:
            passing = is_of_machine(error) or _number(error) == errno.EIO
            pause = next(pauses, None) if passing else None
            if pause is None:
                raise
        time.sleep(pause)


def first_line(error: BaseException) -> str:
    """For a message; of what the system said to tensorstore, that."""
    system = system_message(error)
    return system or (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def system_message(error: BaseException) -> str:
    """`No space left on device`, where tensorstore's ValueError says that; or nothing."""
    found = re.search(r"([^:\[\]]+) \[os_error_code=", str(error))
    return found[1].strip() if found else ""
