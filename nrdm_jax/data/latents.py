"""Records as an autoencoder's latents: mean and standard deviation of each number, bfloat16, as
array_record that TFDS reads (bits in uint16, which it can hold), beside whatever else the records
have; and the source that draws from them.

A set is a directory VERSION with, of each split, shards of so many records; which records a shard
has depends on their number alone, so that any number of processes writes the same files. Beside a
shard lie the sums of its numbers, and beside all of them, last of all, statistics.json: a set is
whole where that is.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from nrdm_jax.data.errors import DataError
from nrdm_jax.data.sources import Source, check_labels, fingerprint_of

NAME, VERSION = "latents", "1.0.0"
SHARD = 512  # records
STATISTICS = "statistics.json"
# (x (n, *S, C) of the records) -> mean and standard deviation (n, *S', L) of their latents
EncodeFn = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
# (indices) -> of each text by its name, one a record
TextsFn = Callable[[np.ndarray], Mapping[str, Sequence[str]]]


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Of the latents of the training records, a channel each: (latent - shift) * scale has mean 0
    and variance 1 over all examples and places, the noise of the draws included.

    Attributes:
      shift, scale: (L,).
      fingerprint: of the pixels and the autoencoder's weights.
      weights: of the weights alone.
    """

    shift: tuple[float, ...]
    scale: tuple[float, ...]
    fingerprint: str
    weights: str

    def normed(self, z: np.ndarray) -> np.ndarray:
        """Latents (..., L) as a diffusion's network sees them."""
        return (z - np.asarray(self.shift, np.float32)) * np.asarray(self.scale, np.float32)

    def latents(self, x: np.ndarray) -> np.ndarray:
        """The inverse of `normed`."""
        return x / np.asarray(self.scale, np.float32) + np.asarray(self.shift, np.float32)

    def write(self, path: pathlib.Path) -> None:
        _write_json(path, dataclasses.asdict(self))

    @classmethod
    def read(cls, path: pathlib.Path) -> "Statistics":
        """Raises:
        DataError: it is not there, or something else.
        """
        try:
            values = json.loads(path.read_text())
            shift, scale = (tuple(map(float, values[name])) for name in ("shift", "scale"))
            return cls(shift, scale, values["fingerprint"], values["weights"])
        except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(f"{path} has no statistics of latents: {error}") from error


def to_bits(x: np.ndarray) -> np.ndarray:
    """Float numbers -> the bits of the nearest bfloat16, uint16."""
    return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)


def of_bits(bits: np.ndarray) -> np.ndarray:
    """The inverse, float32."""
    return np.ascontiguousarray(bits).view(ml_dtypes.bfloat16).astype(np.float32)


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
        chosen = np.arange(number * SHARD, min((number + 1) * SHARD, len(source)))
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
        size = 0
        for i in range(len(chosen)):
            example = self.features.encode_example({name: v[i] for name, v in fields.items()})
            record = self.features.serialize_example(example)
            size += len(record)
            writer.write(record)
        writer.close()
        axes = tuple(range(mean.ndim - 1))
        first, spread = (np.asarray(v, np.float64) for v in (mean, std))
        _write_json(
            sums,
            {
                "examples": len(chosen),
                "bytes": size,
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
            found[split] = [json.loads(_sums_file(file).read_text()) for file in files]
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
            description=__doc__,
            check_data=False,  # it would read an example by TensorFlow
            metadata=tfds.core.MetadataDict(dataclasses.asdict(statistics)),
        )
        statistics.write(self._directory / STATISTICS)
        return statistics


def shards(source: Source) -> int:
    """Into which its records are written."""
    return -(-len(source) // SHARD)


def _file(directory: pathlib.Path, split: str, number: int, count: int) -> pathlib.Path:
    return directory / f"{NAME}-{split}.array_record-{number:05d}-of-{count:05d}"


def _sums_file(file: pathlib.Path) -> pathlib.Path:
    return file.with_name(f"sums-{file.name}.json")


def _statistics(parts: Sequence[Mapping[str, Any]], fingerprint: str, weights: str) -> Statistics:
    count = sum(part["numbers"] for part in parts)
    mean = np.sum([part["sum"] for part in parts], axis=0) / count
    variance = np.sum([part["squares"] for part in parts], axis=0) / count - mean**2
    # A channel that never varies stays as it is.
    scale = 1 / np.sqrt(np.where(variance > 1e-12, variance, 1.0))
    return Statistics(tuple(mean.tolist()), tuple(scale.tolist()), fingerprint, weights)


def _write_json(path: pathlib.Path, values: dict) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(values))
    os.replace(partial, path)


class Encoded:
    """The records of a set as they are stored: "x" the bits of the means, "std" those of the
    standard deviations; a `Source`, to be `decoded` into memory.

    Raises:
      DataError: the set is not whole, or has no such split.
    """

    def __init__(self, directory: pathlib.Path, split: str):
        import tensorflow_datasets as tfds

        self.statistics = Statistics.read(directory / STATISTICS)
        builder = tfds.builder_from_directory(directory)
        if split not in builder.info.splits:
            raise DataError(f"the latents in {directory} have no split {split!r}")
        features = builder.info.features
        self._records = builder.as_data_source(split)
        self._further = [
            name
            for name, feature in features.items()
            if name not in ("mean", "label") and not isinstance(feature, tfds.features.Text)
        ]
        self.shape, self.dtype = tuple(features["mean"].shape), np.dtype(np.uint16)
        self.num_classes = int(features["label"].num_classes)
        self.class_names = tuple(features["label"].names) if features["label"].names else ()
        self.fingerprint = fingerprint_of(NAME, VERSION, self.statistics.fingerprint, split)

    def __len__(self) -> int:
        return len(self._records)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        records = self._records.__getitems__([int(i) for i in indices])
        label = np.asarray([r["label"] for r in records], np.int32)
        check_labels(label, self.num_classes)
        batch = {"x": np.stack([r["mean"] for r in records]), "label": label}
        return batch | {name: np.stack([r[name] for r in records]) for name in self._further}


class LatentSource:
    """Latents of mean 0 and variance 1: their means, for what must be the same each time, or draws
    of them, for training.

    Args:
      stored: `Encoded`, or its records in memory.
      statistics: of them.
    """

    def __init__(self, stored: Source, statistics: Statistics):
        self._stored, self.statistics = stored, statistics
        self.shape, self.dtype = stored.shape, np.dtype(np.float32)
        self.num_classes, self.class_names = stored.num_classes, stored.class_names
        self.fingerprint = stored.fingerprint

    def __len__(self) -> int:
        return len(self._stored)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = self._stored.gather(indices)
        del batch["std"]
        return batch | {"x": self.statistics.normed(of_bits(batch["x"]))}

    def drawn(self, seed: int) -> Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]:
        """(indices, record numbers of a run) -> records whose latents are drawn: the noise is a
        function of the seed and the record's number, whatever the batch and the processes."""

        def gather(indices: np.ndarray, records: np.ndarray) -> dict[str, np.ndarray]:
            batch = self._stored.gather(indices)
            mean, std = of_bits(batch["x"]), of_bits(batch.pop("std"))
            if np.any(std):
                draws = (np.random.default_rng([seed, int(record), 2]) for record in records)
                noise = [draw.standard_normal(self.shape, np.float32) for draw in draws]
                mean = mean + std * np.stack(noise)
            return batch | {"x": self.statistics.normed(mean)}

        return gather
