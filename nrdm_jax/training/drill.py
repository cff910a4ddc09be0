"""What goes wrong in a run on purpose: the faults of `processes.faults`, where they happen.

Without a plan there is no hook, and batches and saves are what they were.
"""

import os
import pathlib
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp

from nrdm_jax.processes.faults import OF_BATCHES, Fault
from nrdm_jax.processes.signals import say
from nrdm_jax.signatures import Array, Batch, Metrics
from nrdm_jax.training.state import TrainState

DONE = "faults.done"  # in a workdir: those that have happened, and to which process
SPIKE = 30.0
_SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP}
_ROOM = 1 << 16  # bytes that files may still grow by on a disk that is full

SaveFn = Callable[[int, TrainState], None]


class Drill:
    """The faults of this process, each once in the workdir.

    Args:
      faults: of all processes.
      workdir: of the run.
      process: which this one is.
      checkpoints: directory of the steps.
      is_saving: whether one is being written.
    """

    def __init__(
        self,
        faults: Sequence[Fault],
        *,
        workdir: pathlib.Path,
        process: int,
        checkpoints: pathlib.Path,
        is_saving: Callable[[], bool],
    ):
        self._done_file, self._process = workdir / DONE, process
        self._workdir, self._checkpoints, self._is_saving = workdir, checkpoints, is_saving
        file = self._done_file
        done = file.read_text().splitlines() if faults and file.exists() else []
        self._faults = [f for f in faults if f.befalls(process) and self._line(f) not in done]
        self._saves = 0
        self._limit: tuple[int, int] | None = None  # before the disk was full

    @property
    def hooks(self) -> list["Drill"]:
        """To be called last."""
        return [self] if self._faults else []

    def batches(self, batches: Iterator[Batch], first_step: int) -> Iterator[Batch]:
        """The same, but for those of `nan` and `spike`; the first is that of step
        `first_step` + 1."""
        planned = [fault for fault in self._faults if fault.kind in OF_BATCHES]
        return self._spoilt(batches, planned, first_step) if planned else batches

    def _spoilt(self, batches, planned: list[Fault], step: int) -> Iterator[Batch]:
        for step, batch in enumerate(batches, step + 1):  # noqa: B020
            for fault in [f for f in planned if f.at == step]:
                self._note(fault)
                batch = poisoned(batch) if fault.kind == "nan" else spiking(batch)
            yield batch

    def saving(self, save: SaveFn) -> SaveFn:
        """The same, but for those of `enospc`."""
        planned = [fault for fault in self._faults if fault.kind == "enospc"]
        if not planned:
            return save

        def full(step: int, state: TrainState) -> None:
            self._saves += 1
            while self._limit is not None:  # it is of one save, which may still be written
                time.sleep(0.01)
                self.settle(step)
            for fault in [f for f in planned if f.at == self._saves]:
                self._note(fault)
                self._fill()
            save(step, state)

        return full

    def __call__(self, step: int, state: TrainState, metrics: Metrics, data_wait: float) -> None:
        self.settle(step)
        for fault in self._faults:
            if fault.at != step or fault.kind not in ("hang", *_SIGNALS):
                continue
            self._note(fault)
            if fault.kind == "hang":
                hang()
            os.kill(os.getpid(), _SIGNALS[fault.kind])

    def settle(self, step: int) -> None:
        """What waits until a save is over; to be called after the last one as well."""
        if self._is_saving():
            return
        if self._limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, self._limit)
            self._limit = None
        for fault in self._faults:
            committed = self._checkpoints / str(fault.at)
            if fault.kind == "flip" and fault.at <= step and committed.exists():
                self._note(fault)
                flip(committed)

    def _fill(self) -> None:
        """Files that this process writes cannot grow on, which the kernel sees to (EFBIG): whoever
        writes them, in whichever thread, fails as on a disk that is full. Those that grow by lines
        have room."""
        self._limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        growing = [f.stat().st_size for f in self._workdir.iterdir() if f.is_file()]
        growing += [os.fstat(number).st_size for number in (1, 2)]
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(growing) + _ROOM, self._limit[1]))

    def _note(self, fault: Fault) -> None:
        """It happens now, and never again."""
        self._faults = [f for f in self._faults if f is not fault]
        with self._done_file.open("a") as file:
            file.write(self._line(fault) + "\n")
            file.flush()
            os.fsync(file.fileno())
        say(f"drill: {fault}")

    def _line(self, fault: Fault) -> str:
        return f"process {self._process}: {fault}"


def hang() -> None:
    """Never returns."""
    while True:
        time.sleep(3600)


def poisoned(batch: Batch) -> Batch:
    """The loss of it is NaN: of what the network sees, numbers are, and labels and tokens have no
    row in their tables, which reads as NaN."""

    def poison(x: Array) -> Array:
        if jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.full_like(x, jnp.nan)
        return jnp.full_like(x, jnp.iinfo(jnp.int32).max)

    named = {"label", "tokens", "text"}
    if jnp.issubdtype(batch["x"].dtype, jnp.floating):
        named.add("x")
    return _changed(batch, named, poison)


def spiking(batch: Batch) -> Batch:
    """The loss of it is far from those before: numbers are `SPIKE` times what they were, and of
    pixels as many as can be are black or white, in turn."""

    def spike(x: Array) -> Array:
        if jnp.issubdtype(x.dtype, jnp.floating):
            return x * SPIKE
        axes = jnp.indices(x.shape[1:], sparse=True)
        return jnp.broadcast_to(jnp.where(sum(axes) % 2, 255, 0), x.shape).astype(x.dtype)

    return _changed(batch, {"x"}, spike)


def _changed(batch: Batch, names: set[str], change: Callable[[Array], Array]) -> Batch:
    return {
        name: jax.jit(change, out_shardings=x.sharding)(x) if name in names else x
        for name, x in batch.items()
    }


def flip(step: pathlib.Path) -> None:
    """Changes the middle bit of the largest file of a checkpoint."""
    file = max((f for f in step.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        (byte,) = opened.read(1)
        opened.seek(-1, os.SEEK_CUR)
        opened.write(bytes([byte ^ 1]))
        opened.flush()
        os.fsync(opened.fileno())
