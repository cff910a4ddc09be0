"""From records to batches on devices.

Position is a pure function: record number r of a run (from 0, over all epochs) is record
permutation_{seed, r // N}(r mod N) of N, whatever the batch size, the processes and the mesh. So
resuming is a seek, each record is read once an epoch, and batches span the ends of epochs.
"""

from collections.abc import Callable, Iterator, Sequence

import grain
import jax
import numpy as np

from nrdm_jax.data.errors import DataError
from nrdm_jax.data.sources import Source
from nrdm_jax.sharding.mesh import rows_here

_ROUNDS = 4  # of grain's index shuffle, a Feistel-like cipher: O(1) memory for any N
_FOREVER = 1 << 40  # batches

Finish = Callable[[dict], dict]


def _as_it_is(batch: dict) -> dict:
    return batch


def record_index(record: int, count: int, seed: int) -> int:
    """Index in the source of record number `record` of a run over `count` records."""
    epoch, position = divmod(record, count)
    epoch_seed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    if count == 1:
        return 0
    return grain.experimental.index_shuffle(position, count - 1, epoch_seed, _ROUNDS)


def is_flipped(record: int, seed: int) -> bool:
    """Whether record number `record` of a run is mirrored: half of them, by a hash."""
    return bool(np.random.SeedSequence([seed, record, 1]).generate_state(1)[0] & 1)


class Loader:
    """Batches of a source, {"x": (B, *S, C), "label": (B,) int32, and what else is given}.

    Args:
      source: of the records.
      batch_size: over all processes.
      seed: of the order and the flips.
      flip: mirror the last spatial axis of half of the records.
      threads: that read and decode batches.
      prefetch: batches made ahead, and of those, two put on the devices.
      sharding: of the global batch; None yields numpy arrays.
      finish: what is left to be done with a batch once it is on the devices.
      rows: of the batch that this process reads; by default those that its devices hold, without
        a sharding all.

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
    ):
        if len(source) < batch_size:
            raise DataError(
                f"data: {len(source)} records are fewer than train.batch_size={batch_size}"
            )
        self._source, self._batch_size, self._seed = source, batch_size, seed
        self._flip, self._threads, self._prefetch = flip, threads, prefetch
        self._sharding, self._finish = sharding, finish
        self._rows = rows_here(sharding, batch_size) if rows is None else rows

    def batch_at(self, records_seen: int) -> dict[str, np.ndarray]:
        """This process's rows of the batch that begins with record number `records_seen`."""
        records = [records_seen + int(row) for row in self._rows]
        count, seed = len(self._source), self._seed
        batch = self._source.gather(np.asarray([record_index(r, count, seed) for r in records]))
        if self._flip:
            flipped = [i for i, r in enumerate(records) if is_flipped(r, seed)]
            batch["x"][flipped] = batch["x"][flipped][..., ::-1, :]
            if "segmentation" in batch:
                batch["segmentation"][flipped] = batch["segmentation"][flipped][..., ::-1]
        return batch

    def iterate(self, records_seen: int) -> Iterator[dict]:
        """Batches from record number `records_seen` on, without end; the same as `batch_at`
        gives."""
        dataset = grain.MapDataset.range(_FOREVER).map(
            lambda i: self.batch_at(records_seen + int(i) * self._batch_size)
        )
        batches = iter(
            dataset.to_iter_dataset(
                grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=self._prefetch)
            )
        )
        if self._sharding is None:
            yield from batches
            return
        # The step is dispatched before the next batch is asked for, so that its transfer runs
        # beside it.
        for batch in batches:
            yield self._finish(to_devices(batch, self._sharding, self._rows, self._batch_size))


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
