"""What is kept of the features of a set of examples, as they come in batches; on disk, too."""

import dataclasses
import json
import os
import pathlib
import zipfile
import zlib

import numpy as np

from nrdm_jax.bounded_archives import read_npz
from nrdm_jax.evaluation.frechet import Moments


@dataclasses.dataclass
class FeatureSet:
    """Features of examples, added batch by batch: moments of all, and some of them as they are.

    Attributes:
      kept: (n,) numbers of the examples, in the order they are added, of which the features
        themselves are kept, ascending; None: of all.
      pooled: moments of the pooled features.
      spatial: moments of the spatial ones, where the network has them.
      features: (k, F) float32, the kept ones' pooled features, in parts.
      labels: (k,) int32, theirs, in parts.
      logits: (k, K) float32, theirs, in parts, where the network has them.
      count: examples added.
      of_classes: (classes,) how many of them have each label.
    """

    kept: np.ndarray | None = None
    pooled: Moments = dataclasses.field(default_factory=Moments)
    spatial: Moments | None = None
    features: list[np.ndarray] = dataclasses.field(default_factory=list)
    labels: list[np.ndarray] = dataclasses.field(default_factory=list)
    logits: list[np.ndarray] = dataclasses.field(default_factory=list)
    count: int = 0
    of_classes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))

    def add(
        self,
        pooled: np.ndarray,
        spatial: np.ndarray | None,
        logits: np.ndarray | None,
        labels: np.ndarray,
    ) -> None:
        """A batch of examples: (n, F), (n, G), (n, K) and (n,)."""
        self.pooled.add(pooled)
        if spatial is not None:
            self.spatial = self.spatial or Moments()
            self.spatial.add(spatial)
        here = np.arange(len(pooled))
        if self.kept is not None:
            first, last = np.searchsorted(self.kept, (self.count, self.count + len(pooled)))
            here = self.kept[first:last] - self.count
        self.features.append(np.asarray(pooled, np.float32)[here])
        self.labels.append(np.asarray(labels, np.int32)[here])
        if logits is not None:
            self.logits.append(np.asarray(logits, np.float32)[here])
        self.count += len(pooled)
        more = np.bincount(np.asarray(labels, np.int64), minlength=len(self.of_classes))
        more[: len(self.of_classes)] += self.of_classes
        self.of_classes = more

    def all_features(self) -> np.ndarray:
        """(k, F), of the kept examples."""
        return np.concatenate(self.features)

    def all_labels(self) -> np.ndarray:
        """(k,)."""
        return np.concatenate(self.labels)

    def all_logits(self) -> np.ndarray | None:
        """(k, K)."""
        return np.concatenate(self.logits) if self.logits else None


def spread(count: int, total: int) -> np.ndarray:
    """(count,) numbers below `total`, evenly from the first on; all, where there are no more."""
    return np.arange(total) if count >= total else (np.arange(count) * total) // count


def drawn(count: int, total: int) -> np.ndarray:
    """(count,) numbers below `total`, ascending, by chance but always the same: a stride would
    fall in step with what the examples are made of, such as the frames of clips."""
    if count >= total:
        return np.arange(total)
    return np.sort(np.random.default_rng(0).choice(total, count, replace=False))


def save(path: pathlib.Path, found: FeatureSet, protocol: dict) -> None:
    """Writes a set without its logits, whole or not at all."""
    arrays: dict[str, np.ndarray] = {
        "features": found.all_features(),
        "labels": found.all_labels(),
        "of_classes": found.of_classes,
        "protocol": np.frombuffer(json.dumps(protocol).encode(), np.uint8),
    }
    for name in ("pooled", "spatial"):
        moments = getattr(found, name)
        if moments is not None:
            arrays |= {f"{name}/{k}": np.asarray(v) for k, v in vars(moments).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def load(path: pathlib.Path) -> FeatureSet | None:
    """The inverse of `save`; None where the file is not there or cannot be read."""
    try:
        arrays = read_npz(path)
        moments = {
            name: Moments(
                int(arrays[f"{name}/count"]),
                *(arrays[f"{name}/{field}"] for field in ("total", "square", "shift")),
            )
            for name in ("pooled", "spatial")
            if f"{name}/count" in arrays
        }
        return FeatureSet(
            pooled=moments["pooled"],
            spatial=moments.get("spatial"),
            features=[arrays["features"]],
            labels=[arrays["labels"]],
            count=moments["pooled"].count,
            of_classes=arrays["of_classes"],
        )
    except (
        OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error,
        RuntimeError,  # of an archive that is encrypted, or of a version that Python does not know
    ):  # fmt: skip
        return None
