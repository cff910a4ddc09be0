"""Writes a data set of latents (`latents`), in shards of so many records.

Which records a shard has depends on their number alone, so that any number of processes writes the
same files, and a shard that is there stays; whose latents they are is noted before the first of
them (`bind`). Beside a shard lie the sums of its numbers, and beside all of them, last of all,
statistics.json: a set is whole where that is.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nrdm_jax.bounded_files import read_object
from nrdm_jax.data import latents
from nrdm_jax.data.errors import DataError, named
from nrdm_jax.data.latents import NAME, STATISTICS, Statistics, to_bits, write_json
from nrdm_jax.data.sources import Source
from nrdm_jax.signatures import Shape

# Of a shard: so many records, and fewer where they have more numbers than this, since a shard is
# gathered whole: 256 MiB of pixels, 1 GiB of floats.
SHARD, NUMBERS = 512, 2**28
BOUND = "pixels.json"  # whose latents they are
# (x (n, *S, C) of the records) -> mean and standard deviation (n, *S', L) of their latents
EncodeFn = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
# (indices) -> of each text by its name, one a record
TextsFn = Callable[[np.ndarray], Mapping[str, Sequence[str]]]


class Writer:
    """Writes the shards of a set.

    Args:
      directory: VERSION's, made where it is absent.
      shape: of an example's latents.
      source: of records, for their classes and what else they have.
      texts: of the records, by name, where there are any.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        shape: tuple[int, ...],
        source: Source,
        texts: Sequence[str] = (),
    ):
        import tensorflow_datasets as tfds

        self._directory, self._texts = directory, tuple(texts)
        directory.mkdir(parents=True, exist_ok=True)
        first = source.gather(np.asarray([0]))
        label = tfds.features.ClassLabel(
            names=source.class_names or None,
            num_classes=None if source.class_names else source.num_classes,
        )
        latents = tfds.features.Tensor(shape=shape, dtype=np.uint16)
        self._further = [name for name in first if name not in ("x", "label")]
        self.features = tfds.features.FeaturesDict(
            {
                "mean": latents,
                "std": latents,
                "label": label,
                **{
                    name: tfds.features.Tensor(
                        shape=first[name].shape[1:], dtype=first[name].dtype.type
                    )
                    for name in self._further
                },
                **{name: tfds.features.Text() for name in self._texts},
            }
        )

    def write(self, source: Source, split: str, number: int, encode: EncodeFn, texts: TextsFn):
        """Writes shard `number` of a split, whole or not at all; one that is there stays.

        Args:
          source: of the split's records.
          split: its name.
          number: of the shard, below `shards`.
          encode: of a few records at a time.
          texts: of records.
        """
        from array_record.python import array_record_module

        file = _file(self._directory, split, number, shards(source))
        sums = _sums_file(file)
        if file.exists() and sums.exists():
            return
        size = per_shard(source.shape)
        chosen = np.arange(number * size, min((number + 1) * size, len(source)))
        batch = source.gather(chosen)
        mean, std = encode(batch.pop("x"))
        if not (np.isfinite(mean).all() and np.isfinite(std).all()):
            raise DataError(f"latents of records {chosen[0]} to {chosen[-1]} are not all finite")
        fields: dict[str, Any] = {
            "mean": to_bits(mean),
            "std": to_bits(std),
            **batch,
            **texts(chosen),
        }
        partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
        writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")
        written = 0
        for i in range(len(chosen)):
            example = self.features.encode_example({name: v[i] for name, v in fields.items()})
            record = self.features.serialize_example(example)
            written += len(record)
            writer.write(record)
        writer.close()
        axes = tuple(range(mean.ndim - 1))
        first, spread = (np.asarray(v, np.float64) for v in (mean, std))
        write_json(
            sums,
            {
                "examples": len(chosen),
                "bytes": written,
                "numbers": int(np.prod(mean.shape[:-1])),
                "sum": first.sum(axes).tolist(),
                "squares": (first**2 + spread**2).sum(axes).tolist(),
            },
        )
        os.replace(partial, file)

    def finish(
        self, sources: Mapping[str, Source], *, fingerprint: str, weights: str
    ) -> Statistics:
        """Writes what TFDS wants to know and the statistics, when all shards are there."""
        import tensorflow_datasets as tfds

        splits, found = [], {}
        for split, source in sources.items():
            count = shards(source)
            files = [_file(self._directory, split, i, count) for i in range(count)]
            found[split] = [_sums(_sums_file(file)) for file in files]
            template = tfds.core.ShardedFileTemplate(
                data_dir=self._directory,
                dataset_name=NAME,
                split=split,
                filetype_suffix="array_record",
            )
            splits.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[part["examples"] for part in found[split]],
                    num_bytes=sum(part["bytes"] for part in found[split]),
                    filename_template=template,
                )
            )
        statistics = _statistics(found["train"], fingerprint, weights)
        tfds.folder_dataset.write_metadata(
            data_dir=self._directory,
            features=self.features,
            split_infos=splits,
            description=latents.__doc__,
            check_data=False,  # it would read an example by TensorFlow
            metadata=tfds.core.MetadataDict(dataclasses.asdict(statistics)),
        )
        statistics.write(self._directory / STATISTICS)
        return statistics


def bind(directory: pathlib.Path, fingerprint: str, data: str) -> None:
    """Notes in a directory without shards of what they are to be; compares where that is noted.

    Args:
      directory: VERSION's, made where it is absent.
      fingerprint: of the pixels and the autoencoder's weights.
      data: name of the pixels' set.

    Raises:
      ValueError: there are shards, of something else.
    """
    directory.mkdir(parents=True, exist_ok=True)
    note = directory / BOUND
    if not note.exists() and not any(directory.glob(f"{NAME}-*.array_record-*")):
        write_json(note, {"fingerprint": fingerprint, "data": data})
    found = bound(directory)
    if found is None or found["fingerprint"] != fingerprint:
        of = "something it does not note" if found is None else f"{found['fingerprint']}"
        raise ValueError(
            f"{directory} is of latents of {of}, and pixels and weights of data.name={data} and "
            f"autoencoder.weights are {fingerprint}; give another directory, or remove that one"
        )


def bound(directory: pathlib.Path) -> dict[str, str] | None:
    """What `bind` has noted: "fingerprint" and "data"; None, where nothing was.

    Raises:
      DataError: the note is damaged.
    """
    note = directory / BOUND
    if not note.exists():
        return None
    with named(str(note), " does not say whose latents are there"):
        values = read_object(note)
        return {name: str(values[name]) for name in ("fingerprint", "data")}


def shards(source: Source) -> int:
    """Into which its records are written."""
    return -(-len(source) // per_shard(source.shape))


def per_shard(shape: Shape) -> int:
    """Records of this shape in a shard: whatever the memory of who writes it, so that all write the
    same."""
    return max(1, min(SHARD, NUMBERS // math.prod(shape)))


def _file(directory: pathlib.Path, split: str, number: int, count: int) -> pathlib.Path:
    return directory / f"{NAME}-{split}.array_record-{number:05d}-of-{count:05d}"


def _sums(file: pathlib.Path) -> dict[str, Any]:
    """What `write` has noted of a shard."""
    with named(str(file), " is damaged; remove it, and encode again"):
        values = read_object(file)
        lists = [[float(n) for n in values[name]] for name in ("sum", "squares")]
        counts = [int(values[name]) for name in ("examples", "bytes", "numbers")]
        if min(counts) < 1 or not all(map(math.isfinite, lists[0] + lists[1])):
            raise DataError("its counts are not above 0, or its sums are not finite")
        return values


def _sums_file(file: pathlib.Path) -> pathlib.Path:
    return file.with_name(f"sums-{file.name}.json")


def _statistics(parts: Sequence[Mapping[str, Any]], fingerprint: str, weights: str) -> Statistics:
    count = sum(part["numbers"] for part in parts)
    mean = np.sum([part["sum"] for part in parts], axis=0) / count
    variance = np.sum([part["squares"] for part in parts], axis=0) / count - mean**2
    # A channel that never varies stays as it is.
    scale = 1 / np.sqrt(np.where(variance > 1e-12, variance, 1.0))
    return Statistics(tuple(mean.tolist()), tuple(scale.tolist()), fingerprint, weights)
