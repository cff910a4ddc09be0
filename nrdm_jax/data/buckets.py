"""Batches of several shapes, each of one: which bucket is read at which step, and where in it.

A set of mixed sizes has each record in the bucket of the nearest shape: its builder then has a
`config_among`, see `builders.table`. One that is made at any shape has all records in every bucket.
"""

import bisect
import functools
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from nrdm_jax.data import order
from nrdm_jax.data.errors import DataError
from nrdm_jax.data.loader import Loader, ahead, to_devices
from nrdm_jax.data.sources import fingerprint_of


class Plan:
    """Which bucket each step of a run reads, and which batch of it: functions of the seed and the
    step.

    A bucket of n records has a run of its own, in batches of B (see `order`). In epoch e are its
    batches from floor(e n / B) to floor((e + 1) n / B), so that all records of all buckets are read
    equally often; in an order of all buckets' batches that is the epoch's.

    Args:
      records: of each bucket, at least a batch.
      sizes: of their batches.
      seed: of the order.
    """

    def __init__(self, records: Sequence[int], sizes: Sequence[int], seed: int):
        self._records, self._sizes, self._seed = tuple(records), tuple(sizes), seed
        self._slots = functools.lru_cache(maxsize=4)(self._slots_of)

    def at(self, step: int) -> tuple[int, int]:
        """(bucket, number of the first record in the bucket's own run)."""
        epoch, place = self._place(step)
        buckets, batches = self._slots(epoch)
        bucket = int(buckets[place])
        return bucket, int(batches[place]) * self._sizes[bucket]

    def records_before(self, step: int) -> int:
        """Records of all buckets that the steps before this one read."""
        epoch, place = self._place(step)
        buckets, _ = self._slots(epoch)
        return self._records_before_epoch(epoch) + int(np.take(self._sizes, buckets[:place]).sum())

    def step_at(self, records_seen: int) -> int:
        """The first step before which at least so many records are read."""
        epochs = range(records_seen + 2)  # each of a record at least
        epoch = bisect.bisect_right(epochs, records_seen, key=self._records_before_epoch) - 1
        buckets, _ = self._slots(epoch)
        read = np.cumsum([self._records_before_epoch(epoch), *np.take(self._sizes, buckets)])
        return self._steps_before_epoch(epoch) + int(np.searchsorted(read, records_seen))

    def _place(self, step: int) -> tuple[int, int]:
        """(epoch, place in it)."""
        epochs = range(step + 2)  # each of a step at least
        epoch = bisect.bisect_right(epochs, step, key=self._steps_before_epoch) - 1
        return epoch, step - self._steps_before_epoch(epoch)

    def _batches_before(self, epoch: int) -> list[int]:
        return [epoch * n // size for n, size in zip(self._records, self._sizes, strict=True)]

    def _steps_before_epoch(self, epoch: int) -> int:
        return sum(self._batches_before(epoch))

    def _records_before_epoch(self, epoch: int) -> int:
        return int(np.dot(self._batches_before(epoch), self._sizes))

    def _slots_of(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(bucket, number of its batch), in the order of the steps of an epoch."""
        first, last = self._batches_before(epoch), self._batches_before(epoch + 1)
        spans = list(zip(first, last, strict=True))
        buckets = np.repeat(np.arange(len(spans)), [b - a for a, b in spans])
        batches = np.concatenate([np.arange(a, b) for a, b in spans])
        mixed = order.permutation(len(buckets), order.seed_of(self._seed, epoch, 2))
        return buckets[mixed], batches[mixed]


class BucketLoader:
    """Batches of buckets, in the order of a `Plan`; otherwise as a `Loader`.

    Args:
      buckets: a loader each, of sources of different shapes and one type.
      seed, threads, prefetch, sharding: as of a `Loader`.

    Attributes:
      dtype, fingerprint: of all.
      plan: the steps.

    Raises:
      DataError: the types differ.
    """

    def __init__(
        self,
        buckets: Sequence[Loader],
        *,
        seed: int,
        threads: int = 1,
        prefetch: int = 2,
        sharding: jax.sharding.Sharding | None = None,
    ):
        self._buckets, self._threads, self._prefetch = tuple(buckets), threads, prefetch
        self._sharding = sharding
        self.dtype = buckets[0].dtype
        if {bucket.dtype for bucket in buckets} != {self.dtype}:
            raise DataError(f"data.buckets: {[str(b.dtype) for b in buckets]} are several types")
        self.fingerprint = fingerprint_of(*(bucket.fingerprint for bucket in buckets))
        self.plan = Plan(
            [len(bucket.source) for bucket in buckets], [b.batch_size for b in buckets], seed
        )

    @property
    def records_a_step(self) -> float:
        """On average."""
        return sum(len(b.source) for b in self._buckets) / sum(map(steps_an_epoch, self._buckets))

    def position_after(self, position: int, steps: int) -> int:
        """Records of all buckets before the step that comes so many after the first one before
        which at least `position` are read."""
        return self.plan.records_before(self.plan.step_at(position) + steps)

    def iterate(self, records_seen: int) -> Iterator[dict]:
        """Batches from the first step on before which so many records are read, without end."""
        first = self.plan.step_at(records_seen)

        def make(i: int) -> tuple[int, dict[str, np.ndarray]]:
            bucket, record = self.plan.at(first + i)
            return bucket, self._buckets[bucket].batch_at(record)

        for bucket, batch in ahead(make, threads=self._threads, prefetch=self._prefetch):
            own = self._buckets[bucket]
            yield (
                batch
                if self._sharding is None
                else own.finish(to_devices(batch, self._sharding, own.rows, own.batch_size))
            )

    def table(self) -> str:
        """Shape, records, batch and steps an epoch of each."""
        lines = [f"{'bucket':>20} {'records':>10} {'batch':>7} {'steps an epoch':>15}"]
        for b in self._buckets:
            shape = "x".join(map(str, b.source.shape))
            lines.append(
                f"{shape:>20} {len(b.source):>10,} {b.batch_size:>7,} {steps_an_epoch(b):>15,.1f}"
            )
        return "\n".join(lines)


def steps_an_epoch(bucket: Loader) -> float:
    return len(bucket.source) / bucket.batch_size
