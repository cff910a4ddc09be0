"""Where a run's figures go: lines, metrics.jsonl, TensorBoard events, and the account of its
time."""

import contextlib
import errno
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tqdm import tqdm

from nrdm_jax import durability
from nrdm_jax.bounded_files import MOST_JSON, parse_json, read_lines
from nrdm_jax.processes import distributed
from nrdm_jax.training.events import Events


class Ledger:
    """Seconds of this process by what they were spent on.

    Args:
      clock: -> seconds; monotonic, since the time of day may be set back.
      listener: told the section that begins, and `step` after each.

    Attributes:
      spent: by section.
      data_wait: of the steps' own seconds, those for which they waited for their batches.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        listener: Callable[[str], None] = lambda section: None,
    ):
        self._clock, self._listener = clock, listener
        self._start = clock()
        self._open: float | None = None  # when the section began that is not charged yet
        self.spent: dict[str, float] = {}
        self.data_wait = 0.0

    @contextlib.contextmanager
    def account(self, section: str) -> Iterator[None]:
        """Charges the time within to `section`; sections do not nest."""
        self._open = before = self._clock()
        self._listener(section)
        try:
            yield
        finally:
            self._open = None
            self._listener("step")
            self.charge(section, self._clock() - before)

    def charge(self, section: str, seconds: float) -> None:
        """Takes seconds that went to steps for those of a section."""
        self.spent[section] = self.spent.get(section, 0.0) + seconds

    def elapsed(self) -> float:
        return self._clock() - self._start

    def outside(self) -> float:
        """Seconds that went to sections, to one that is open as well."""
        since = 0.0 if self._open is None else self._clock() - self._open
        return sum(self.spent.values()) + since

    def productive(self) -> float:
        """Seconds that went to steps: all that no section was charged with."""
        return self.elapsed() - self.outside()


class MetricsWriter:
    """metrics.jsonl (one JSON object a line) and TensorBoard events in a workdir; of several
    processes, one writes.

    Each row says where the run stands: `step`, `images` seen, `seconds` that it has taken and
    `step_seconds`, those of them that went to steps: not to compiling, evaluating, saving or
    drawing. The seconds are of all processes that worked on the run: they go on from the
    checkpoint, so that neither a pause nor work that was lost counts. Where it does not say them,
    as that of an older version, they are unknown, and no row says them.

    Args:
      workdir: an existing directory.
      first_step: steps done at the start of this process. What a killed process logged beyond it is
        removed: those steps will be done, and logged, again. At 0 that is everything.
      ledger: of this process.
      images: step -> images seen after it.
      before: `seconds` and `step_seconds` of the run up to the first step, where they are known.
    """

    SECONDS = ("seconds", "step_seconds")

    def __init__(
        self,
        workdir: pathlib.Path,
        first_step: int,
        *,
        ledger: Ledger,
        images: Callable[[int], int],
        before: Mapping[str, float],
    ):
        self._path = workdir / "metrics.jsonl"
        self._first_step, self._images = first_step, images
        self._ledger = ledger
        self._before = {name: before[name] for name in MetricsWriter.SECONDS if name in before}
        self._events: Events | None = None
        if not distributed.is_writer():
            return
        kept = [row for row in read_metrics(workdir) if 0 < first_step >= row["step"]]
        if self._path.exists():
            partial = self._path.with_suffix(".tmp")
            partial.write_text("".join(_line(row) for row in kept))
            durability.flush(partial)
            os.replace(partial, self._path)
        self._events = Events(workdir, first_step + 1 if first_step else 0)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """On a disk that is full the row is left out, and training goes on."""
        if self._events is None:
            return
        with warned_of(f"step {step} is not in {self._path}"):
            self._append(_line({"step": step, **self.so_far(step), **values}))
        with warned_of(f"step {step} is not in TensorBoard's events"):
            self._events.write(
                step, {name: value for name, value in values.items() if _is_number(value)}
            )

    def _append(self, line: str) -> None:
        """All of a line, or nothing of it."""
        with self._path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                written = file.write(line.encode())
                if written != len(line.encode()):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(before)
                raise

    def so_far(self, step: int) -> dict[str, float]:
        """Images seen at a step, and the seconds until now, as far as they are known."""
        now = {"seconds": self._ledger.elapsed(), "step_seconds": self._ledger.productive()}
        return {"images": self._images(step)} | {
            name: round(before + now[name], 3) for name, before in self._before.items()
        }

    def close(self) -> None:
        if self._events is not None:
            with warned_of("the last of TensorBoard's events are not written"):
                self._events.close()


@contextlib.contextmanager
def warned_of(what: str) -> Iterator[None]:
    """What is within writes a figure or a picture: what the disk refuses is told of, and training
    goes on without."""
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError):  # it may be on the same disk
            print(f"WARNING: {what}: {error}", file=sys.stderr, flush=True)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(nulls(dict(row)), allow_nan=False) + "\n"


def read_metrics(workdir: pathlib.Path) -> list[dict]:
    """The rows of metrics.jsonl, none where there is none yet; a line that is none, as a last one
    cut short by a kill, is left out."""
    path = workdir / "metrics.jsonl"
    rows: list[dict] = []
    for _, line in read_lines(path, MOST_JSON) if path.exists() else ():
        with contextlib.suppress(ValueError, RecursionError):
            row = nans(parse_json(line))
            rows += [row] if _is_row(row) else []
    return rows


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return False
    places = (row.get(name, 0) for name in ("images", *MetricsWriter.SECONDS))
    return all(isinstance(place, int | float) for place in places)


def nulls(tree: Any) -> Any:
    """Of dicts, lists and numbers: numbers that are not finite become None, since JSON has no word
    for them."""
    if isinstance(tree, dict):
        return {key: nulls(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [nulls(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def nans(tree: Any) -> Any:
    """The way back from `nulls`: None becomes NaN."""
    if isinstance(tree, dict):
        return {key: nans(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [nans(value) for value in tree]
    return float("nan") if tree is None else tree


class Progress:
    """A progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, first_step: int, last_step: int):
        self._bar = None
        if sys.stdout.isatty():
            self._bar = tqdm(total=last_step, initial=first_step, unit="step", dynamic_ncols=True)

    def advance(self) -> None:
        if self._bar:
            self._bar.update(1)

    def line(self, text: str) -> None:
        if self._bar:
            self._bar.write(text)
        else:
            with contextlib.suppress(OSError):  # a log on a disk that is full
                print(text, flush=True)

    def close(self) -> None:
        if self._bar:
            self._bar.close()


def step_line(step: int, last_step: int, values: Mapping[str, float]) -> str:
    """`step=1200/400000 loss=0.2341 …`, the fields in the order given."""
    fields = [f"step={step}/{last_step}"]
    for name, value in values.items():
        if name == "eta":
            fields.append(f"eta={duration(value)}")
        elif name in ("img/s", "TFLOP/s/chip"):
            fields.append(f"{name}={value:.4g}")
        elif name in ("data_wait", "goodput", "MFU"):
            fields.append(f"{name}={100 * value:.1f}%")
        elif name == "step_time":
            fields.append(f"step_time={value:.3f}s")
        elif name == "lr":
            fields.append(f"lr={value:.2e}")
        elif isinstance(value, int):
            fields.append(f"{name}={value}")
        else:
            fields.append(f"{name}={value:.4f}")
    return " ".join(fields)


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"
