"""Records written a shard at a time: a preparation that is killed goes on where it was.

A shard appears whole under its final name, then a note of what it holds beside it; a shard with a
note whose checksum is right is not made again, and its bytes depend on nothing but its items.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

from nrdm_jax.bounded_files import read_object
from nrdm_jax.data.errors import DataError
from nrdm_jax.data.manifest import checksum, write_json

# What is asked of a set is a pair: its name (unique within a split), and what it is made from.
Item = tuple[str, Any]

# So many items may be corrupt and left out, whatever the size of the set; beyond it, this share.
FEW, SHARE = 10, 0.01


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard that is done.

    Attributes:
      file: its name.
      records: in it.
      bytes: of them, as they were given.
      sha256: of the file.
      corrupt: (item, reason) of those left out.
    """

    file: str
    records: int
    bytes: int
    sha256: str
    corrupt: tuple[tuple[str, str], ...]


class Tally:
    """Counts items, and those that are corrupt, from any thread.

    Args:
      total: items of all splits.
      policy: skip or fail.
      advance: called with the number of items that were just done.
    """

    def __init__(self, total: int, policy: str, advance: Callable[[int], object]):
        self._total, self._policy, self._advance = total, policy, advance
        self._lock = threading.Lock()
        self._found: list[str] = []

    def done(self, items: int) -> None:
        with self._lock:
            self._advance(items)

    def corrupt(self, reason: str) -> None:
        """Raises:
        DataError: there may be none, or not as many.
        """
        with self._lock:
            self._found.append(reason)
            if self._policy == "fail":
                raise DataError(f"{reason}; data.corrupt=skip leaves such items out")
            if len(self._found) > max(FEW, SHARE * self._total):
                some = "; ".join(self._found[:3])
                raise DataError(
                    f"{len(self._found)} of {self._total:,} items cannot be used, more than {FEW} "
                    f"and than {SHARE:.0%}: {some}; …"
                )


def write(
    directory: pathlib.Path,
    items: Mapping[str, Sequence[Item]],
    records: Callable[[Any], Iterable[bytes]],
    *,
    plan: str,
    per_shard: int,
    corrupt: str,
    threads: int,
) -> dict[str, list[Shard]]:
    """Writes the records of all items into `directory`, as many shards at a time as there are
    threads, and returns the shards of each split; those that were there are not made again.

    Args:
      directory: made where it is absent, emptied where it is of another plan.
      items: of each split, in the order in which they are written.
      records: of one item's second part, none or more; it raises DataError where it is corrupt.
        What an item has given before that stays.
      plan: what decides the records beside the items' names, such as a version.
      per_shard: items.
      corrupt: skip or fail.

    Raises:
      DataError: items are corrupt, and they may not be, or too many of them are.
    """
    _bind(directory, plan, items, per_shard)
    pieces = [
        (f"{split}-{number:05d}.array_record", part)
        for split, whole in items.items()
        for number, part in enumerate(
            whole[start : start + per_shard] for start in range(0, len(whole), per_shard)
        )
    ]
    found = {name: _noted(directory / name) for name, _ in pieces}
    total, stop = sum(map(len, items.values())), threading.Event()
    with _progress(total) as bar:
        tally = Tally(total, corrupt, bar.update)
        left = []
        for name, part in pieces:
            if found[name]:
                bar.initial += len(part)
                tally.done(len(part))
            else:
                left.append((name, part))
        pool = ThreadPoolExecutor(max(1, threads))
        try:
            tasks = {
                name: pool.submit(_write_shard, directory / name, part, records, tally, stop)
                for name, part in left
            }
            done, _ = wait(tasks.values(), return_when=FIRST_EXCEPTION)
            for task in done:
                task.result()
            found |= {name: task.result() for name, task in tasks.items()}
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    return {
        split: [shard for name, shard in found.items() if shard and name.startswith(f"{split}-")]
        for split in items
    }


class Stopped(Exception):
    """Another shard failed; this one is not finished."""


def _write_shard(
    path: pathlib.Path,
    items: Sequence[Item],
    records: Callable[[Any], Iterable[bytes]],
    tally: Tally,
    stop: threading.Event,
) -> Shard:
    from array_record.python.array_record_module import ArrayRecordWriter

    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    # As TFDS writes: a group a record, so that reading one decompresses no other.
    writer = ArrayRecordWriter(str(partial), "group_size:1")
    count = size = 0
    corrupt = []
    try:
        for name, content in items:
            try:
                for record in records(content):
                    if stop.is_set():
                        raise Stopped
                    writer.write(record)
                    count, size = count + 1, size + len(record)
            except DataError as error:
                corrupt.append((name, str(error)))
                tally.corrupt(str(error))
            tally.done(1)
    finally:
        writer.close()
    with open(partial, "rb+") as file:
        os.fsync(file.fileno())
    shard = Shard(path.name, count, size, checksum(partial), tuple(corrupt))
    os.replace(partial, path)
    write_json(_note_of(path), dataclasses.asdict(shard))
    return shard


def _noted(path: pathlib.Path) -> Shard | None:
    """The shard, if it is done, sound, and none of its items was corrupt (which may have been
    repaired since)."""
    try:
        fields = read_object(_note_of(path))
        shard = Shard(**(fields | {"corrupt": tuple(map(tuple, fields["corrupt"]))}))
        sound = not shard.corrupt and checksum(path) == shard.sha256
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return shard if sound else None


def _note_of(path: pathlib.Path) -> pathlib.Path:
    return path.with_suffix(".json")


def _bind(
    directory: pathlib.Path, plan: str, items: Mapping[str, Sequence[Item]], per_shard: int
) -> None:
    """Empties a directory that holds shards of other items."""
    digest = hashlib.sha256(json.dumps([plan, per_shard]).encode())
    for split, part in items.items():
        digest.update(json.dumps([split, len(part)]).encode())
        for name, _ in part:
            digest.update(json.dumps(name).encode())
    wanted = {"plan": digest.hexdigest()}
    note = directory / "plan.json"
    with contextlib.suppress(OSError, ValueError):  # one that is damaged is of other items
        if read_object(note) == wanted:
            return
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    write_json(note, wanted)


def _progress(total: int):
    """A bar on stderr with the rate in items; where nobody watches, a line every half minute."""
    from tqdm import tqdm

    watched = sys.stderr.isatty()
    return tqdm(
        total=total,
        unit=" items",
        mininterval=0.2 if watched else 30,
        delay=0 if watched else 30,
        ascii=True,
        leave=False,
        dynamic_ncols=watched,
    )
