"""Sources of records: random access by index, whatever they are stored in.

A record is {"x": (*S, C) uint8 pixels or float latents, "label": int32} and what else is given with
it (`signatures.Given`). Position, order and augmentation are the loader's.
"""

import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Protocol

import ml_dtypes
import numpy as np

from nrdm_jax.data import manifest
from nrdm_jax.data.errors import DataError, NoRecordsError, named
from nrdm_jax.data.prepared import Records
from nrdm_jax.data.stored import once

SPLITS = ("train", "heldout")
# What a set's records may be: float tensors, pictures, or uint8 tensors (T, H, W, C), (D, H, W, C).
FEATURES = ("latent", "image", "clip", "volume")
# What says in words what is seen.
CAPTIONS = ("caption", "name")


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

    def captions(self, indices: np.ndarray) -> list[str]:
        """(n,) indices -> what they show, in words.

        Raises:
          DataError: the records have no captions.
        """


class ArraySource:
    """Records in memory (or memory-mapped).

    Args:
      x: (n, *S, C).
      label: (n,).
      num_classes, class_names, fingerprint: as the attributes.
      further: what else the records have, n of each, by name.
      captions: see `Source.captions`; None: there are none.
      seen_classes: as of `TfdsSource`, of `further`.

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
        captions: Callable[[np.ndarray], list[str]] | None = None,
        seen_classes: int = 0,
    ):
        if len(x) == 0:
            raise NoRecordsError("data: 0 examples; nothing to train on")
        if len(x) != len(label):
            raise DataError(f"data: {len(x)} examples and {len(label)} labels")
        check_labels(label, num_classes, np.arange(len(label)))
        self.x, self.label, self.further = x, label, dict(further or {})
        self.shape, self.dtype = tuple(x.shape[1:]), x.dtype
        self.num_classes, self.class_names = num_classes, class_names
        self.fingerprint = fingerprint
        self._captions, self._seen_classes = captions, seen_classes

    def __len__(self) -> int:
        return len(self.x)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = {"x": self.x[indices], "label": self.label[indices].astype(np.int32)}
        batch |= {name: values[indices] for name, values in self.further.items()}
        check_segmentation(batch, indices, self._seen_classes)
        return batch

    def captions(self, indices: np.ndarray) -> list[str]:
        if self._captions is None:
            raise DataError("these records have no captions; set text.encoder=none")
        return self._captions(indices)


class TfdsSource:
    """Records of a prepared TFDS data set (array_record), decoded as they are asked for.

    Args:
      builder: prepared; one of the features `FEATURES`, and `label`.
      split: of the data set.
      seen_classes: of the `segmentation` (*S) uint8 that the records then have as well, 0 ..
        seen_classes - 1; 0: they have none.
      by_contents: the fingerprint is of the bytes of the records, and not of the set's name: that
        of a folder's changes when its files are touched or copied, and what is read does not.

    Raises:
      DataError: the features or the split are absent, or the split is empty; or what was prepared
        has no manifest, see `by_contents`; or as `Records`.
    """

    def __init__(self, builder, split: str, *, seen_classes: int = 0, by_contents: bool = False):
        features = builder.info.features
        name = builder.info.full_name
        where = f"{name} in {builder.data_dir}"
        self._further = ("segmentation",) if seen_classes else ()
        self._seen_classes = seen_classes
        if seen_classes and "segmentation" not in features:
            raise DataError(
                f"data set {where} has no segmentation; choose another data.seen, or data.name"
            )
        self._feature = next((f for f in FEATURES if f in features), "")
        if not self._feature or "label" not in features:
            raise DataError(
                f"data set {where} has features {', '.join(features)}; "
                f"needed: one of {', '.join(FEATURES)}, and `label`"
            )
        if split not in builder.info.splits or not builder.info.splits[split].num_examples:
            raise NoRecordsError(
                f"data set {where} has no records in split {split!r}; "
                f"its splits: {', '.join(builder.info.splits)}"
            )
        self._records = Records(builder, split)
        self._builder, self._split = builder, split
        # By the type's name: the module that has it takes a second to import.
        self.text_names = tuple(n for n, f in features.items() if type(f).__name__ == "Text")
        feature, label = features[self._feature], features["label"]
        with named(f"data set {where}", " has no records and classes of one kind"):
            self.shape = tuple(feature.shape)
            self.dtype = np.dtype(feature.np_dtype)
            self.num_classes = int(label.num_classes)
            self.class_names = tuple(label.names)
        info = builder.info.splits[split]
        made_of = [name, split, list(info.shard_lengths), info.num_bytes]
        if by_contents:
            shards = sorted(info.filenames)
            made_of = [
                split, self.shape, manifest.checksums(pathlib.Path(builder.data_dir), shards)
            ]  # fmt: skip
        self.fingerprint = fingerprint_of(*made_of, *self._further)
        if None in self.shape:
            raise DataError(f"data set {where}: examples of {self.shape} differ in size")

    def __len__(self) -> int:
        return len(self._records)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        records = self._records.read([int(i) for i in indices])
        with named(self._records.name):
            label = np.asarray([r["label"] for r in records], np.int32)
            batch = {"x": np.stack([r[self._feature] for r in records]), "label": label}
            batch |= {name: np.stack([r[name] for r in records]) for name in self._further}
            if batch["x"].shape[1:] != self.shape:
                raise DataError(f"has records of {batch['x'].shape[1:]}, not of {self.shape}")
        check_labels(label, self.num_classes, indices)
        check_segmentation(batch, indices, self._seen_classes)
        return batch

    def texts(self, indices: np.ndarray) -> dict[str, list[str]]:
        """What the records say in words, captions and names, by the feature."""
        return {
            name: texts_of(self._builder, self._split, name, indices) for name in self.text_names
        }

    def captions(self, indices: np.ndarray) -> list[str]:
        return captions_of(self._builder, self._split, indices)


def captions_of(builder, split: str, indices: np.ndarray) -> list[str]:
    """Of records of a prepared TFDS data set.

    Raises:
      DataError: it has none.
    """
    features, name = builder.info.features, builder.info.full_name
    caption = next((f for f in CAPTIONS if f in features), None)
    if caption is None:
        raise DataError(
            f"data set {name} has features {', '.join(features)} and none of "
            f"{', '.join(CAPTIONS)}; set text.encoder=none"
        )
    return texts_of(builder, split, caption, indices)


def texts_of(builder, split: str, text: str, indices: np.ndarray) -> list[str]:
    """A feature of records of a prepared TFDS data set. Raises as `Records.read`."""
    records = _words(builder, split, text)
    found = [r[text] for r in records.read([int(i) for i in indices])]
    with named(records.name, f" has a {text} that is no text of UTF-8"):
        return [str(words, "utf-8") if isinstance(words, bytes) else str(words) for words in found]


@functools.lru_cache(maxsize=8)
def _words(builder, split: str, text: str) -> Records:
    """Words alone: twenty times faster than with the pictures."""
    return Records(builder, split, skip=[name for name in builder.info.features if name != text])


def check_labels(label: np.ndarray, num_classes: int, indices: np.ndarray) -> None:
    """Raises:
    DataError: a label is outside 0 .. num_classes - 1, of the record whose index it names. (Flax
      reads one that is too large as NaN and -1 as the last row, both silently.)
    """
    wrong = np.flatnonzero((label < 0) | (label >= num_classes))
    if len(wrong):
        record, found = indices[wrong[0]], label[wrong[0]]
        raise DataError(f"record {record} has label {found}, outside 0..{num_classes - 1}")


def check_segmentation(batch: Mapping[str, np.ndarray], indices: np.ndarray, classes: int) -> None:
    """Raises:
    DataError: a place has a class outside 0 .. classes - 1, which a network would see as none.
    """
    if not classes or "segmentation" not in batch:
        return
    highest = batch["segmentation"].reshape(len(indices), -1).max(axis=1, initial=0)
    wrong = np.flatnonzero(highest >= classes)
    if len(wrong):
        raise DataError(
            f"record {indices[wrong[0]]} has the class {highest[wrong[0]]} in its segmentation, "
            f"outside 0..{classes - 1}; set data.seen_classes to one more than the highest class"
        )


def fingerprint_of(*parts) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def decoded(source: Source, directory: pathlib.Path, *, seen_classes: int = 0) -> ArraySource:
    """The source decoded once: into arrays under `directory`, memory-mapped from then on.

    TFDS decodes about 1,400 small images a second whatever the threads; arrays give 10 times that.
    """

    def write(folder: pathlib.Path) -> None:
        arrays: dict[str, np.memmap] = {}
        for start in range(0, len(source), 1024):
            part = np.arange(start, min(start + 1024, len(source)))
            for name, values in source.gather(part).items():
                if name not in arrays:
                    arrays[name] = np.lib.format.open_memmap(
                        folder / f"{name}.npy",
                        "w+",
                        values.dtype,
                        (len(source), *values.shape[1:]),
                    )
                arrays[name][part] = values
        for array in arrays.values():
            array.flush()

    home = once(directory / source.fingerprint, write)
    found = {file.stem: mapped(file) for file in sorted(home.glob("*.npy"))}
    with named(str(home), " is damaged; remove it"):
        said = (len(source), *source.shape)
        if found["x"].shape != said or found["x"].dtype != source.dtype:
            raise DataError(f"{found['x'].dtype} {found['x'].shape}, not {source.dtype} {said}")
        if any(len(values) != len(source) for values in found.values()):
            raise DataError(f"its arrays are not all of {len(source):,} records")
    return ArraySource(
        found.pop("x"),
        np.asarray(found.pop("label")),
        further=found,
        num_classes=source.num_classes,
        class_names=source.class_names,
        fingerprint=source.fingerprint,
        captions=source.captions,
        seen_classes=seen_classes,
    )


def mapped(file: pathlib.Path) -> np.ndarray:
    """The array of an .npy that was computed once, as it is read.

    Raises:
      DataError: it is damaged.
    """
    with named(str(file), " is damaged; remove its folder"):
        array = np.lib.format.open_memmap(file, "r")
        # numpy's files have no name for bfloat16, and give its bytes back without one.
        return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array


def synthetic(shape: tuple[int, ...], num_classes: int, split: str) -> ArraySource:
    """512 smooth random examples (64 held out) of any shape, for tests: each class its own mean,
    plus a random low-frequency pattern, so that there is something to learn; captions by class."""
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

    def captions(indices: np.ndarray) -> list[str]:
        return [f"pattern number {label[i]}" for i in indices]

    return ArraySource(
        pixels,
        label,
        num_classes=num_classes,
        fingerprint=fingerprint_of("synthetic", 1, shape, num_classes, split),
        captions=captions,
    )


def open_source(
    name: str,
    split: str,
    *,
    shape: tuple[int, ...],
    num_classes: int,
    data_dir: str,
    in_memory_bytes: float,
    seen_classes: int = 0,
    among: tuple[tuple[int, ...], ...] = (),
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
      seen_classes: see `TfdsSource`.
      among: shapes of buckets: those records only of which this shape is the nearest, see
        `builders.table`.
      corrupt: skip | fail, what is done about items that cannot be used.
      stride: of frames, where clips are cut from videos.

    Raises:
      ValueError: an unknown name, or a set that cannot have this shape or number of classes.
      DataError: the data are not there, empty or damaged.
    """
    if name == "synthetic":
        if seen_classes:
            raise ValueError("data.seen=segmentation: data.name=synthetic has none")
        return synthetic(shape, num_classes, split)
    from nrdm_jax.data.builders import table  # imports tensorflow_datasets, which takes a second

    builder = table.prepared(name, shape, data_dir, corrupt=corrupt, stride=stride, among=among)
    source: Source = TfdsSource(
        builder,
        table.split_of(builder, split),
        seen_classes=seen_classes,
        by_contents=name.partition(":")[0] in table.FOLDERS,
    )
    if source.shape != tuple(shape):
        raise ValueError(
            f"data.shape is {tuple(shape)}, but records of data.name={name} are {source.shape}"
        )
    if source.num_classes != num_classes:
        raise ValueError(
            f"data.num_classes is {num_classes}, but data.name={name} has {source.num_classes}"
        )
    if len(source) * math.prod(shape) * source.dtype.itemsize <= in_memory_bytes:
        return decoded(source, pathlib.Path(data_dir) / "decoded", seen_classes=seen_classes)
    return source
