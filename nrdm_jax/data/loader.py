"""From records to batches on devices.

Position is a pure function (see `order`), whatever the batch size, the processes and the mesh. So
resuming is a seek, each record is read once an epoch, and batches span the ends of epochs.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np

from nrdm_jax.data import order
from nrdm_jax.data.errors import DataError
from nrdm_jax.data.sources import Source
from nrdm_jax.sharding.mesh import rows_here

_FOREVER = 1 << 40  # batches

Finish = Callable[[dict], dict]


def _as_it_is(batch: dict) -> dict:
    return batch


class Loader:
    """Batches of a source, {"x": (B, *S, C), "label": (B,) int32, and what else is given}.

    Args:
      source: of the records.
      batch_size: over all processes.
      seed: of the order and the flips.
      flip: mirror the last spatial axis of half of the records.
      threads: that read and decode batches.
      prefetch: batches made ahead, in the host's memory; each is put on the devices when it is
        asked for, see `iterate`.
      sharding: of the global batch; None yields numpy arrays.
      finish: what is left to be done with a batch once it is on the devices.
      rows: of the batch that this process reads; by default those that its devices hold, without
        a sharding all.
      read: (indices (n,), record numbers of the run (n,)) -> the records, where one is not the
        same each time; by default `source.gather` of the indices.

    Attributes:
      source, batch_size, rows: as given.
      dtype, fingerprint: of the source.

    Raises:
      DataError: fewer records than a batch.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        seed: int,
        flip: bool = False,
        threads: int = 1,
        prefetch: int = 2,
        sharding: jax.sharding.Sharding | None = None,
        finish: Finish = _as_it_is,
        rows: Sequence[int] | None = None,
        read: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]] | None = None,
    ):
        if len(source) < batch_size:
            raise DataError(
                f"data: {len(source)} records are fewer than train.batch_size={batch_size}"
            )
        self.source, self.batch_size, self._seed = source, batch_size, seed
        self._flip, self._threads, self._prefetch = flip, threads, prefetch
        self._sharding, self.finish = sharding, finish
        self.rows = rows_here(sharding, batch_size) if rows is None else rows
        self.dtype, self.fingerprint = source.dtype, source.fingerprint
        self._read = read or (lambda indices, records: source.gather(indices))

    @property
    def records_a_step(self) -> float:
        """On average."""
        return float(self.batch_size)

    def position_after(self, position: int, steps: int) -> int:
        """The number of the next record, so many steps after it was `position`."""
        return position + steps * self.batch_size

    def batch_at(self, records_seen: int) -> dict[str, np.ndarray]:
        """This process's rows of the batch that begins with record number `records_seen`."""
        numbers = records_seen + np.asarray(self.rows)
        batch = self._read(order.indices_of(numbers, len(self.source), self._seed), numbers)
        if self._flip:
            flipped = np.flatnonzero(order.are_flipped(numbers, self._seed))
            batch["x"][flipped] = batch["x"][flipped][..., ::-1, :]
            if "segmentation" in batch:
                batch["segmentation"][flipped] = batch["segmentation"][flipped][..., ::-1]
        return batch

    def iterate(self, records_seen: int) -> Iterator[dict]:
        """Batches from record number `records_seen` on, without end; the same as `batch_at`
        gives."""
        batches = ahead(
            lambda i: self.batch_at(records_seen + i * self.batch_size),
            threads=self._threads,
            prefetch=self._prefetch,
        )
        if self._sharding is None:
            yield from batches
            return
        # The step is dispatched before the next batch is asked for, so that its transfer runs
        # beside it.
        for batch in batches:
            yield self.finish(to_devices(batch, self._sharding, self.rows, self.batch_size))


def ahead(make: Callable[[int], Any], *, threads: int, prefetch: int) -> Iterator[Any]:
    """make(0), make(1), ... without end, made in threads and so many ahead."""
    dataset = grain.MapDataset.range(_FOREVER).map(lambda i: make(int(i)))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(dataset.to_iter_dataset(options))


def to_devices(
    batch: dict[str, np.ndarray], sharding: jax.sharding.Sharding, rows: Sequence[int], size: int
) -> dict:
    """Each process's rows of a batch of this size as one global array a field."""
    numbers = np.asarray(rows)

    def whole(value: np.ndarray) -> jax.Array:
        def part(index):
            first, last, _ = index[0].indices(size)
            start = np.searchsorted(numbers, first)
            return value[start : start + last - first]

        return jax.make_array_from_callback((size, *value.shape[1:]), sharding, part)

    return {name: whole(value) for name, value in batch.items()}


def in_order(
    source: Source,
    batch_size: int,
    sharding: jax.sharding.Sharding | None = None,
    *,
    limit: int = 0,
    finish: Finish = _as_it_is,
) -> Iterator[dict]:
    """Every record once, in the source's order: the batches have a "mask" (B,) bool as well.

    The last batch is filled with repetitions, which the mask leaves out. `limit` > 0 takes that
    many records, spread evenly over the source. `finish` is as the loader's.
    """
    total = len(source)
    chosen = np.arange(total)
    if 0 < limit < total:
        chosen = (np.arange(limit) * total) // limit
    rows = rows_here(sharding, batch_size)
    for start in range(0, len(chosen), batch_size):
        numbers = start + np.asarray(rows)
        batch = source.gather(chosen[np.minimum(numbers, len(chosen) - 1)])
        batch["mask"] = numbers < len(chosen)
        if sharding is None:
            yield batch
        else:
            yield finish(to_devices(batch, sharding, rows, batch_size))
