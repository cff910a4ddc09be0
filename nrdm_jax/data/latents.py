"""Records as an autoencoder's latents: mean and standard deviation of each number, bfloat16, as
array_record that TFDS reads (bits in uint16, which it can hold), beside whatever else the records
have; and the source that draws from them. `latent_shards` writes such a set.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
from collections.abc import Callable

import ml_dtypes
import numpy as np

from nrdm_jax.bounded_files import read_object
from nrdm_jax.data.errors import DataError, named
from nrdm_jax.data.prepared import Records, open_directory
from nrdm_jax.data.sources import Source, captions_of, check_labels, fingerprint_of

NAME, VERSION = "latents", "1.0.0"
STATISTICS = "statistics.json"


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

    def normed(self, z: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Latents (..., L) as a diffusion's network sees them, in `out` where it is given, which
        may be `z`."""
        moved = np.subtract(z, np.asarray(self.shift, np.float32), out=out)
        return np.multiply(moved, np.asarray(self.scale, np.float32), out=moved)

    def latents(self, x: np.ndarray) -> np.ndarray:
        """The inverse of `normed`."""
        return x / np.asarray(self.scale, np.float32) + np.asarray(self.shift, np.float32)

    def write(self, path: pathlib.Path) -> None:
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def read(cls, path: pathlib.Path) -> "Statistics":
        """Raises:
        DataError: it is not there, or something else.
        """
        with named(str(path), " has no statistics of latents"):
            values = read_object(path)
            shift, scale = (tuple(map(float, values[name])) for name in ("shift", "scale"))
            if not all(map(math.isfinite, shift + scale)) or min(scale) <= 0:
                raise DataError("numbers are not finite, or a scale is not above 0")
            if len(shift) != len(scale):
                raise DataError(f"{len(shift)} shifts and {len(scale)} scales")
            return cls(shift, scale, str(values["fingerprint"]), str(values["weights"]))


def to_bits(x: np.ndarray) -> np.ndarray:
    """Float numbers -> the bits of the nearest bfloat16, uint16."""
    return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)


def of_bits(bits: np.ndarray) -> np.ndarray:
    """The inverse, float32."""
    return np.ascontiguousarray(bits).view(ml_dtypes.bfloat16).astype(np.float32)


def write_json(path: pathlib.Path, values: dict) -> None:
    """A file that appears whole or not at all."""
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
        builder = open_directory(directory)
        if split not in builder.info.splits:
            raise DataError(f"the latents in {directory} have no split {split!r}")
        features = builder.info.features
        self._records, self._builder, self._split = Records(builder, split), builder, split
        with named(str(directory), " is no set of latents"):
            self._further = {
                name: feature.np_dtype  # of one number TFDS gives Python's
                for name, feature in features.items()
                if name not in ("mean", "label") and not isinstance(feature, tfds.features.Text)
            }
            self.shape, self.dtype = tuple(features["mean"].shape), np.dtype(np.uint16)
            self.num_classes = int(features["label"].num_classes)
            self.class_names = tuple(features["label"].names) if features["label"].names else ()
            channels = len(self.statistics.shift)
            if features["mean"].np_dtype != self.dtype or self.shape[-1:] != (channels,):
                said = f"{features['mean'].np_dtype} {self.shape}"
                raise DataError(f"{STATISTICS} has {channels} channels, and the latents are {said}")
        self.fingerprint = fingerprint_of(NAME, VERSION, self.statistics.fingerprint, split)

    def __len__(self) -> int:
        return len(self._records)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        records = self._records.read([int(i) for i in indices])
        with named(self._records.name):
            label = np.asarray([r["label"] for r in records], np.int32)
            batch = {"x": np.stack([r["mean"] for r in records]), "label": label}
            batch |= {
                name: np.asarray([r[name] for r in records], dtype)
                for name, dtype in self._further.items()
            }
        check_labels(label, self.num_classes, indices)
        return batch

    def captions(self, indices: np.ndarray) -> list[str]:
        return captions_of(self._builder, self._split, indices)


class LatentSource:
    """Latents of mean 0 and variance 1: their means, for what must be the same each time, or draws
    of them, for training.

    Args:
      stored: `Encoded`, or its records in memory, or either with what is given of its captions.
      statistics: of them.
    """

    def __init__(self, stored: Source, statistics: Statistics):
        self.stored, self.statistics = stored, statistics
        self.shape, self.dtype = stored.shape, np.dtype(np.float32)
        self.num_classes, self.class_names = stored.num_classes, stored.class_names
        self.fingerprint = stored.fingerprint

    def __len__(self) -> int:
        return len(self.stored)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = self.stored.gather(indices)
        del batch["std"]
        return batch | {"x": self.statistics.normed(of_bits(batch["x"]))}

    def captions(self, indices: np.ndarray) -> list[str]:
        return self.stored.captions(indices)

    def drawn(self, seed: int) -> Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]:
        """(indices, record numbers of a run) -> records whose latents are drawn: the noise is a
        function of the seed and the record's number, whatever the batch and the processes."""

        def gather(indices: np.ndarray, records: np.ndarray) -> dict[str, np.ndarray]:
            batch = self.stored.gather(indices)
            x, std = of_bits(batch["x"]), of_bits(batch.pop("std"))
            # Each step in the memory of the one before: to ask for new costs more than the sums.
            if np.any(std):
                noise = noise_of(records, self.shape, seed)
                noise *= std
                x += noise
            return batch | {"x": self.statistics.normed(x, out=x)}

        return gather


def noise_of(records: np.ndarray, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Normal numbers (n, *shape) float32, those of each record its own: Philox (Salmon et al.
    2011), keyed by the seed and counting from a place that the record has."""
    bits = np.random.Philox(key=[seed, 2])
    state, size = bits.state, math.prod(shape)
    words = np.empty((len(records), -(-size // 4)), np.uint64)
    # Another place of one generator: to make one for each record takes longer than its bits.
    for record, one in zip(records, words, strict=True):
        state["state"]["counter"][1] = record
        bits.state = state
        one[:] = bits.random_raw(len(one))
    # No index of 16 bits is out of range: `clip` spares the check, half of the time.
    return _quantiles().take(words.view(np.uint16)[:, :size], mode="clip").reshape(-1, *shape)


@functools.cache
def _quantiles() -> np.ndarray:
    """(65536,) float32, which are equally probable: the standard normal distribution in 16 bits, up
    to 4.3 either way, of variance 1 - 1e-5. Finer than latents in bfloat16 are, and to look them up
    takes a quarter of the time that numpy's normal numbers take, the most of reading a record."""
    from scipy.special import ndtri

    return ndtri((np.arange(2**16) + 0.5) / 2**16).astype(np.float32)
