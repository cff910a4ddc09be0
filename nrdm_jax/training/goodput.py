"""How much of a run's time went to steps that count, over all its processes."""

import contextlib
import json
import os
import pathlib
from typing import Any

from nrdm_jax.bounded_files import read_object
from nrdm_jax.processes import distributed
from nrdm_jax.training.metrics import Ledger


class Goodput:
    """The account of a run in WORKDIR/goodput.json: seconds by what they went to.

    `step` are those of steps that count, what they waited for data included; `lost` those of steps
    that were done and are done again, after a kill or a rollback. All others are sections of the
    ledger. Goodput is the share of `step` in their sum. The time between processes is nobody's, and
    so is what one did after the last line before it was killed.

    Args:
      workdir: an existing directory.
      ledger: of this process.
      step_seconds: of the steps that the restored checkpoint has, 0 of a fresh state; None:
        unknown, as in a checkpoint of an older version, and then nothing was lost.
    """

    FILE = "goodput.json"

    def __init__(self, workdir: pathlib.Path, ledger: Ledger, step_seconds: float | None):
        self._path, self._ledger = workdir / self.FILE, ledger
        before = _read(self._path)
        self._before: dict[str, float] = before.get("seconds", {})
        done = self._before.pop("step", 0.0)
        self._steps = done if step_seconds is None else step_seconds
        if done > self._steps:
            self._before["lost"] = self._before.get("lost", 0.0) + done - self._steps
        self._waited = before.get("data_wait", 0.0)
        self._processes = before.get("processes", 0) + 1

    def seconds(self) -> dict[str, float]:
        """By what they went to; those of sections that are open are not in it yet."""
        total = dict(self._before)
        for name, spent in self._ledger.spent.items():
            total[name] = total.get(name, 0.0) + spent
        return total | {"step": self._steps + self._ledger.productive()}

    def share(self) -> float:
        """In [0, 1]."""
        total = self.seconds()
        return total["step"] / max(sum(total.values()), 1e-9)

    def data_wait(self) -> float:
        """Seconds for which all steps, lost ones included, waited for their batches."""
        return self._waited + self._ledger.data_wait

    def write(self) -> None:
        """Of several processes, one does."""
        if not distributed.is_writer():
            return
        values = {
            "goodput": round(self.share(), 4),
            "seconds": {name: round(value, 3) for name, value in self.seconds().items()},
            "data_wait": round(self.data_wait(), 3),
            "processes": self._processes,
        }
        partial = self._path.with_suffix(".tmp")
        # A disk that is full ends no run for this: the account is then a few lines old.
        with contextlib.suppress(OSError):
            partial.write_text(json.dumps(values, indent=2))
            os.replace(partial, self._path)

    def in_words(self) -> str:
        seconds = self.seconds()
        listed = " ".join(f"{name}={value:.2f}" for name, value in seconds.items())
        return (
            f"seconds: {listed} (waiting for data {self.data_wait():.2f} of the steps'); "
            f"goodput {100 * self.share():.1f} %, {self._processes} process"
            + ("es" if self._processes > 1 else "")
        )


def _read(path: pathlib.Path) -> dict[str, Any]:
    """Nothing where there is no account, or one that cannot be read: it decides nothing."""
    try:
        found = read_object(path)
        numbers = [*found["seconds"].values(), found.get("data_wait", 0), found.get("processes", 0)]
        return found if all(isinstance(value, int | float) for value in numbers) else {}
    except (OSError, ValueError, KeyError, AttributeError):
        return {}
