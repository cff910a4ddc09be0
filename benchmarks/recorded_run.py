"""The train entry with a record of what it trains on, for benchmarks that end it on its way.

  python -m benchmarks.recorded_run --record=FILE --config=configs/openmoji32.py:smoke --workdir=DIR

The record has a line of JSON for each of these, written before it happens: of a process that is
killed all lines are there, but for a part of the last.

  {"restored": 8}        steps done, when the first step begins
  {"section": "save"}    what the process does now, as the watchdog knows it
  {"step": 9, "rows": {"0": [17, 401, ...]}, "crc": {"0": 123}}
                         the batch of step 9: which records the rows of it that this process has
                         are, by the first row's number, and the CRC-32 of what the step is given
"""

import json
import os
import pathlib
import zlib

import numpy as np
from absl import flags

from nrdm_jax import train
from nrdm_jax.processes import lifecycle

RECORD = "record"  # in a batch, the indices of its records


def define_flags() -> None:
    train.define_flags()
    flags.DEFINE_string("record", None, "file of the record, which is made anew")
    flags.mark_flag_as_required("record")


class Record:
    """Lines that are written at once."""

    def __init__(self, path: str):
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)

    def write(self, **values) -> None:
        os.write(self._file, (json.dumps(values) + "\n").encode())


class Numbered:
    """Records that say which they are."""

    def __init__(self, source):
        self._source = source

    def __getattr__(self, name):
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return self._source.gather(indices) | {RECORD: np.asarray(indices, np.int32)}


def _parts(array) -> dict[int, np.ndarray]:
    """First row -> the rows of it that this process has."""
    return {shard.index[0].start or 0: np.asarray(shard.data) for shard in array.addressable_shards}


def keep_record(record: Record) -> None:
    """From now on runs of this process tell it what they do."""
    from nrdm_jax import programs, records

    class Steps(programs.Steps):
        done: int | None = None

        def __call__(self, state, batch):
            batch = dict(batch)
            rows = _parts(batch.pop(RECORD))
            if self.done is None:
                self.done = int(state.step)
                record.write(restored=self.done)
            self.done += 1
            record.write(
                step=self.done,
                rows={first: part.tolist() for first, part in rows.items()},
                crc={
                    first: zlib.crc32(part.tobytes()) for first, part in _parts(batch["x"]).items()
                },
            )
            return super().__call__(state, batch)

    sources, enter = records.training_sources, lifecycle.Signals.enter

    def numbered(*arguments):
        return {shape: Numbered(found) for shape, found in sources(*arguments).items()}

    def entered(self, section: str) -> None:
        record.write(section=section)
        enter(self, section)

    programs.Steps = Steps  # type: ignore[misc]
    records.training_sources = numbered
    lifecycle.Signals.enter = entered  # type: ignore[method-assign]


def read(path: pathlib.Path) -> list[dict]:
    """The lines of a record, without a last one that a kill has cut; none where there is none."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def run() -> None:
    keep_record(Record(flags.FLAGS.record))
    train.run()


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
