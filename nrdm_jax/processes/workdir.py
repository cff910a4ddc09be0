"""The directory of a run: claimed by one job at a time, bound to one config (`stored_config`)."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import secrets
import shutil
import socket
import sys
import tempfile
import time
from typing import IO

from nrdm_jax import durability
from nrdm_jax.processes import distributed, exit_codes
from nrdm_jax.processes.exit_codes import Stop
from nrdm_jax.processes.stored_config import changes

LEASE = 180.0  # seconds for which a lock may outlive who had it
SEEN = ".seen-"  # and what no name there can have been before
SEEN_IN = 60.0  # seconds after which every host must see what one of them has written


class Workdir:
    """Claims `path`, making it if need be; holds the claim until `release` or the process's end. Of
    several processes the writer does it, and the others wait until it is done and look whether it
    is theirs too: each would save its part of a checkpoint where no other one is.

    Args:
      path: of the run.
      config: plain JSON values. An existing run's must be equal, unless `allow_change`; it is
        written by `record`, when the run is known to fit it.

    Raises:
      Stop: another process holds it, it cannot be written, or processes see other directories
        there (exit code 74).
      ValueError: its config is another (exit code 2).
    """

    def __init__(self, path: str, config: dict, *, allow_change: bool):
        self.path = pathlib.Path(path)
        self._config = config
        self._lock: IO | None = None
        if distributed.is_writer():
            self._claim(allow_change)
        distributed.meet("workdir")
        self._require_one()

    def _claim(self, allow_change: bool) -> None:
        path, made = self.path, not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = lock = (self.path / ".lock").open("a+", errors="replace")
            self._hold(lock)
            self._probe()
        except BlockingIOError:
            raise Stop(
                exit_codes.IO,
                f"workdir {path} is in use by another run{_holder(lock)}; choose another --workdir",
            ) from None
        except OSError as error:
            self.release()
            raise Stop(exit_codes.IO, f"workdir {path} cannot be written: {error}") from error
        try:
            for line in changes(self.path, self._config, allow_change):
                print(f"config changed: {line}", file=sys.stderr, flush=True)
        except ValueError:
            self.release()
            raise
        if made:
            print(f"workdir {path}: new run", flush=True)

    def _hold(self, lock: IO) -> None:
        """Raises:
        BlockingIOError: another process has it. By a job of several, and where it is one of another
          host, it is waited for: where a host has lost power, a server of files holds what that had
          until its lease ends.
        """
        begun, said = time.monotonic(), False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return _sign(lock)
            except BlockingIOError:
                holder = _holder(lock)
                waits = distributed.active() or (holder and _host() not in holder)
                if not waits or time.monotonic() - begun >= LEASE:
                    raise
                if not said:
                    print(
                        f"workdir {self.path} is held{holder}; waiting up to {LEASE:.0f} s",
                        flush=True,
                    )
                    said = True
                time.sleep(1)
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                    raise
                # As on Lustre without its option flock.
                print(
                    f"warning: nothing keeps another run out of workdir {self.path}, whose file "
                    f"system has no locks: {error}",
                    file=sys.stderr,
                    flush=True,
                )
                return

    def _probe(self) -> None:
        """Makes a directory, writes and flushes a file there, renames the directory and flushes the
        one that it is in: what every save will need, and some buckets that are mounted cannot."""
        probe, probed = self.path / ".probe", self.path / ".probed"
        # By a start that was killed, or of an older version.
        for left in (probe, probed, *self.path.glob(f"{SEEN}*")):
            if left.is_file():
                left.unlink()
            shutil.rmtree(left, ignore_errors=True)
        probe.mkdir()
        with (probe / "file").open("w") as file:
            file.write("probe")
            file.flush()
            os.fsync(file.fileno())
        os.rename(probe, probed)
        shutil.rmtree(probed)
        durability.flush(self.path)

    def _require_one(self) -> None:
        """Raises:
        Stop: what the writer puts there some process cannot see (exit code 74).
        """
        if not distributed.active():
            return
        mark = self.path / distributed.told(SEEN + secrets.token_hex(8))[0]
        if distributed.is_writer():
            mark.touch()
        distributed.told(True)  # it is there
        deadline = time.monotonic() + SEEN_IN
        while not (seen := os.path.exists(mark)) and time.monotonic() < deadline:
            time.sleep(0.5)
        blind = [i for i, saw in enumerate(distributed.told(seen)) if not saw]
        if distributed.is_writer():
            mark.unlink(missing_ok=True)
        if blind:
            raise Stop(
                exit_codes.IO,
                f"workdir {self.path} is not one directory to all processes: {blind} do not "
                "see what process 0 has written there; give a --workdir that all hosts share",
            )

    def require_space(self, needed: int, what: str) -> None:
        """Raises:
        Stop: the disk has fewer bytes free than are needed for `what` (exit code 74).
        """
        if not distributed.is_writer():
            return
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise Stop(
                exit_codes.IO,
                f"workdir {self.path} has {free / 2**30:.2f} GiB free, and "
                f"{needed / 2**30:.2f} GiB are needed for {what}; "
                "free some, or choose a --workdir on another disk",
            )

    def record(self, environment: dict) -> None:
        """Writes the config, and a line of env.json: plain JSON values of this start."""
        if not distributed.is_writer():
            return
        stored_at = self.path / "config.json"
        partial = stored_at.with_suffix(".tmp")
        with partial.open("w") as file:
            file.write(json.dumps(self._config, indent=2, sort_keys=True))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, stored_at)
        durability.flush(self.path)
        with contextlib.suppress(OSError):  # the workdir's name; that place may not be ours to read
            durability.flush(self.path.absolute().parent)
        with (self.path / "env.json").open("a") as file:
            file.write(json.dumps(environment) + "\n")

    def release(self) -> None:
        if self._lock is not None:
            with contextlib.suppress(OSError):  # what it could not write before, on a full disk
                self._lock.close()


def _host() -> str:
    return f" on {socket.gethostname()} "


def _sign(lock: IO) -> None:
    """Says in the file whose it is, for `_holder`."""
    lock.truncate(0)
    lock.write(f" (process {os.getpid()}{_host()}since {time.strftime('%F %T %z')})")
    lock.flush()


def _holder(lock: IO) -> str:
    """What the holder of the lock says of itself, or nothing, as one of an older version."""
    lock.seek(0)
    return lock.read(200)


def check_place(path: str) -> None:
    """Whether there can be a workdir, before anything takes long; nothing is left behind. Of
    several processes the writer looks.

    Raises:
      Stop: it cannot be written (exit code 74).
    """
    if not distributed.is_writer():
        return
    place = pathlib.Path(path).absolute()
    try:
        there = next(p for p in (place, *place.parents) if p.exists())
        with tempfile.TemporaryDirectory(prefix=".probe", dir=there):
            pass
    except OSError as error:
        raise Stop(exit_codes.IO, f"workdir {path} cannot be written: {error}") from error
