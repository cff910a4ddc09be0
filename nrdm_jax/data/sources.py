"""Sources of records: random access by index, whatever they are stored in.

A record is {"x": (*S, C) uint8 pixels or float latents, "label": int32} and what else is given with
it (`signatures.Given`). Position, order and augmentation are the loader's.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from nrdm_jax.data.errors import DataError

SPLITS = ("train", "heldout")
# What a set's records may be: float tensors, pictures, or uint8 tensors (T, H, W, C), (D, H, W, C).
FEATURES = ("latent", "image", "clip", "volume")


class Source(Protocol):
    """Attributes:
    shape: of one `x`.
    dtype: of `x`.
    num_classes: labels are 0 .. num_classes - 1.
    class_names: one for each, or empty.
    fingerprint: of everything that decides the records: name, version, split, preprocessing.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    num_classes: int
    class_names: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int: ...

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """(n,) indices -> x (n, *S, C), label (n,) int32 and what else is given, freshly
        allocated."""


class ArraySource:
    """Records in memory (or memory-mapped).

    Args:
      x: (n, *S, C).
      label: (n,).
      num_classes, class_names, fingerprint: as the attributes.
      further: what else the records have, n of each, by name.

    Raises:
      DataError: no records, or a label outside 0 .. num_classes - 1.
    """

    def __init__(
        self,
        x: np.ndarray,
        label: np.ndarray,
        *,
        num_classes: int,
        class_names: tuple[str, ...] = (),
        fingerprint: str,
        further: Mapping[str, np.ndarray] | None = None,
    ):
        if len(x) == 0 or len(x) != len(label):
            raise DataError(f"data: {len(x)} examples and {len(label)} labels; nothing to train on")
        check_labels(label, num_classes)
        self.x, self.label, self.further = x, label, dict(further or {})
        self.shape, self.dtype = tuple(x.shape[1:]), x.dtype
        self.num_classes, self.class_names = num_classes, class_names
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self.x)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = {"x": self.x[indices], "label": self.label[indices].astype(np.int32)}
        return batch | {name: values[indices] for name, values in self.further.items()}


class TfdsSource:
    """Records of a prepared TFDS data set (array_record), decoded as they are asked for.

    Args:
      builder: prepared; one of the features `FEATURES`, and `label`.
      split: of the data set.
      segmented: the records have their `segmentation` (*S) uint8 as well.

    Raises:
      DataError: the features or the split are absent, or the split is empty.
    """

    def __init__(self, builder, split: str, *, segmented: bool = False):
        features = builder.info.features
        name = builder.info.full_name
        self._further = ("segmentation",) if segmented else ()
        if segmented and "segmentation" not in features:
            raise DataError(
                f"data set {name} has no segmentation; choose another data.seen, or data.name"
            )
        self._feature = next((f for f in FEATURES if f in features), "")
        if not self._feature or "label" not in features:
            raise DataError(
                f"data set {name} has features {', '.join(features)}; "
                f"needed: one of {', '.join(FEATURES)}, and `label`"
            )
        if split not in builder.info.splits or not builder.info.splits[split].num_examples:
            raise DataError(
                f"data set {name} has no records in split {split!r}; "
                f"its splits: {', '.join(builder.info.splits)}"
            )
        self._records = builder.as_data_source(split)
        feature, label = features[self._feature], features["label"]
        self.shape = tuple(feature.shape)
        self.dtype = np.dtype(feature.np_dtype)
        self.num_classes = int(label.num_classes)
        self.class_names = tuple(label.names)
        info = builder.info.splits[split]
        self.fingerprint = fingerprint_of(
            name, split, list(info.shard_lengths), info.num_bytes, *self._further
        )
        if None in self.shape:
            raise DataError(f"data set {name}: examples of {self.shape} differ in size")

    def __len__(self) -> int:
        return len(self._records)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        records = self._records.__getitems__([int(i) for i in indices])
        label = np.asarray([r["label"] for r in records], np.int32)
        check_labels(label, self.num_classes)
        batch = {"x": np.stack([r[self._feature] for r in records]), "label": label}
        return batch | {name: np.stack([r[name] for r in records]) for name in self._further}


def check_labels(label: np.ndarray, num_classes: int) -> None:
    """Raises:
    DataError: a label is outside 0 .. num_classes - 1. (Flax reads one that is too large as NaN and
      -1 as the last row, both silently.)
    """
    wrong = np.flatnonzero((label < 0) | (label >= num_classes))
    if len(wrong):
        raise DataError(
            f"record {wrong[0]} has label {label[wrong[0]]}, outside 0..{num_classes - 1}"
        )


def fingerprint_of(*parts) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def decoded(source: Source, directory: pathlib.Path) -> ArraySource:
    """The source decoded once: into two arrays under `directory`, memory-mapped from then on.

    TFDS decodes about 1,400 small images a second whatever the threads; arrays give 10 times that.
    """
    home = directory / source.fingerprint
    if not home.exists():
        partial = directory / f"{source.fingerprint}.{os.getpid()}.partial"
        partial.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, np.memmap] = {}
        for start in range(0, len(source), 1024):
            part = np.arange(start, min(start + 1024, len(source)))
            for name, values in source.gather(part).items():
                if name not in arrays:
                    arrays[name] = np.lib.format.open_memmap(
                        partial / f"{name}.npy",
                        "w+",
                        values.dtype,
                        (len(source), *values.shape[1:]),
                    )
                arrays[name][part] = values
        for array in arrays.values():
            array.flush()
        try:
            os.rename(partial, home)
        except OSError:  # another process was first
            if not home.exists():
                raise
    found = {file.stem: np.load(file, mmap_mode="r") for file in sorted(home.glob("*.npy"))}
    return ArraySource(
        found.pop("x"),
        np.asarray(found.pop("label")),
        further=found,
        num_classes=source.num_classes,
        class_names=source.class_names,
        fingerprint=source.fingerprint,
    )


def synthetic(shape: tuple[int, ...], num_classes: int, split: str) -> ArraySource:
    """512 smooth random examples (64 held out) of any shape, for tests: each class its own mean,
    plus a random low-frequency pattern, so that there is something to learn."""
    count = 512 if split == "train" else 64
    draw = np.random.default_rng([0, SPLITS.index(split)])
    label = (np.arange(count) % num_classes).astype(np.int32)
    colours = np.random.default_rng(1).uniform(-0.5, 0.5, (num_classes, shape[-1]))
    axes = [np.linspace(0, np.pi, size) for size in shape[:-1]]
    x: np.ndarray = np.zeros((count, *shape), np.float32)
    x += colours[label].reshape(count, *(1,) * (len(shape) - 1), shape[-1])
    for axis, angle in enumerate(axes):
        view = [1] * len(shape) + [1]
        view[axis + 1] = len(angle)
        phase = draw.uniform(0, 2 * np.pi, (count, *(1,) * (len(shape) - 1), shape[-1]))
        x = x + 0.4 * np.cos(angle.reshape(view[:-1] + [1])[..., :1] * 2 + phase)
    pixels = np.rint(np.clip(x, -1, 1) * 127.5 + 127.5).astype(np.uint8)
    return ArraySource(
        pixels,
        label,
        num_classes=num_classes,
        fingerprint=fingerprint_of("synthetic", 1, shape, num_classes, split),
    )


def open_source(
    name: str,
    split: str,
    *,
    shape: tuple[int, ...],
    num_classes: int,
    data_dir: str,
    in_memory_bytes: float,
    segmented: bool = False,
    corrupt: str = "skip",
    stride: int = 1,
) -> Source:
    """The records of a data set, prepared on first use.

    Args:
      name: a key of `builders.table.BUILDERS`, FOLDER:PATH with one of its `FOLDERS`, synthetic, or
        tfds:NAME[/CONFIG][:VERSION], a TFDS data set that was prepared in `data_dir` before.
      split: train or heldout.
      shape, num_classes: what the config says a record is.
      data_dir: of prepared sets.
      in_memory_bytes: a set whose decoded size is below is decoded once.
      segmented: see `TfdsSource`.
      corrupt: skip | fail, what is done about items that cannot be used.
      stride: of frames, where clips are cut from videos.

    Raises:
      ValueError: an unknown name, or a set that cannot have this shape or number of classes.
      DataError: the data are not there, empty or damaged.
    """
    if name == "synthetic":
        if segmented:
            raise ValueError("data.seen=segmentation: data.name=synthetic has none")
        return synthetic(shape, num_classes, split)
    from nrdm_jax.data.builders import table  # imports tensorflow_datasets, which takes a second

    builder = table.prepared(name, shape, data_dir, corrupt=corrupt, stride=stride)
    source: Source = TfdsSource(builder, table.split_of(builder, split), segmented=segmented)
    if source.shape != tuple(shape):
        raise ValueError(
            f"data.shape is {tuple(shape)}, but records of data.name={name} are {source.shape}"
        )
    if source.num_classes != num_classes:
        raise ValueError(
            f"data.num_classes is {num_classes}, but data.name={name} has {source.num_classes}"
        )
    if len(source) * np.prod(shape) * source.dtype.itemsize <= in_memory_bytes:
        return decoded(source, pathlib.Path(data_dir) / "decoded")
    return source
