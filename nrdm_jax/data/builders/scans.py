"""Folders of scans that a user has, whatever the files: classes, splits, spacing, masks.

The class is the first sub-folder, or `all`. Held out is what lies in PATH/heldout, val, validation
or test, the first that is there beside PATH/train (only the two are read then), and otherwise about
15 % of the subjects, and one at least, by a hash of their names. Scans are turned to [z, y, x]
(`data.volumes`) and brought to cubic voxels of one edge for the whole set, with which nine scans of
ten are kept as a whole; the others are cut around their middle.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import tensorflow_datasets as tfds

from nrdm_jax.data import folders, volumes
from nrdm_jax.data.builders.items import ItemsBuilder
from nrdm_jax.data.errors import DataError, named

HELDOUT = 0.15  # of the subjects

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Scan:
    """One of a folder, of which only headers are read yet.

    Attributes:
      name: its path within the folder, without a split.
      subject: who was scanned, or `name` where that is not known: never in both splits.
      kind: its class.
      heldout: None where no folder says.
      files: that it is read from, in no order.
      mask: a file of it, or None.
      size: (D, H, W) voxels.
      spacing: of those, mm.
      fault: why it cannot be used, or empty; without size and spacing then.
    """

    name: str
    subject: str
    kind: str
    heldout: bool | None
    files: tuple[pathlib.Path, ...]
    mask: pathlib.Path | None = None
    size: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    fault: str = ""


def by_place(found: Mapping[str, T]) -> Iterator[tuple[T, str, str, bool | None]]:
    """What is found in a folder by its paths there -> (it, `name`, `kind`, `heldout`), without what
    lies in neither of the folders of the splits. See `folders.split_folders`."""
    named = folders.split_folders(found)
    for key, value in found.items():
        top, _, below = key.partition("/")
        if named and not (below and top in named.values()):
            continue
        name = below if named else key
        folder, _, rest = name.partition("/")
        heldout = top != named["train"] if "heldout" in named else None
        yield value, name, folder if rest else folders.ALL, heldout


def split(scans: Sequence[Scan]) -> dict[str, list[Scan]]:
    """train and heldout, by folder, or else by subject.

    Raises:
      DataError: a split is empty.
    """
    numbers = {scan.subject: folders.number_of(scan.subject) for scan in scans
               if scan.heldout is None}  # fmt: skip
    least = min(numbers.values(), default=0.0)
    chosen = {subject for subject, at in numbers.items() if at < HELDOUT or at == least}
    found: dict[str, list[Scan]] = {"train": [], "heldout": []}
    for scan in scans:
        heldout = scan.subject in chosen if scan.heldout is None else scan.heldout
        found["heldout" if heldout else "train"].append(scan)
    for name, part in found.items():
        if not part:
            raise DataError(
                f"none of {len(scans)} scans is in {name}; put some of several subjects into "
                "folders train and heldout"
            )
    return found


class ScanFolderConfig(tfds.core.BuilderConfig):
    """Voxels along D, H, W, of those files of a folder, as they are now."""

    def __init__(self, size: tuple[int, ...], folder: pathlib.Path, files: Iterable[pathlib.Path]):
        stamp = folders.stamp_of({file.relative_to(folder).as_posix(): file for file in files})
        super().__init__(name="x".join(map(str, size)) + f"-{stamp}", version="1.0.0")
        self.size, self.folder = size, folder


class ScanFolder(ItemsBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Features: volume (D, H, W, 1) uint8, label (classes by folder), file; segmentation (D, H, W)
    uint8, if the scans have masks.

    A kind of file has a class of its own, which says how they are found and read.
    """

    VERSION = tfds.core.Version("1.0.0")
    SHAPE = (32, 32, 32, 1)
    ITEMS_PER_SHARD = 64
    NAME = "scan_folder"

    def __init__(self, **kwargs):
        self._scans: list[Scan] = []
        super().__init__(**kwargs)

    @staticmethod
    def is_read(file: pathlib.Path) -> bool:
        """Whether a file is of a scan or a mask, by its name or its first bytes."""
        raise NotImplementedError

    @staticmethod
    def find(folder: pathlib.Path) -> Iterator[Scan]:
        """The scans of a folder, by their headers."""
        raise NotImplementedError

    @staticmethod
    def read(scan: Scan) -> tuple[np.ndarray, np.ndarray | None]:
        """(D, H, W) intensities, and the classes of its mask.

        Raises:
          DataError: a file is damaged, or they do not go together.
        """
        raise NotImplementedError

    @classmethod
    def config_for(cls, shape: tuple[int, ...], folder: pathlib.Path) -> ScanFolderConfig:
        """Raises:
        ValueError: the shape is no volume of one channel.
        DataError: there is no such folder.
        """
        if len(shape) != 4 or shape[3] != 1:
            raise ValueError(
                f"data.shape is {shape}; {cls.NAME} has (d, h, w, 1) for any numbers of voxels"
            )
        if not folder.is_dir():
            raise DataError(f"{folder} is no directory")
        files = filter(cls.is_read, folders.walk_files(folder))
        return ScanFolderConfig(shape[:3], folder, files)

    def _info(self) -> tfds.core.DatasetInfo:
        size = tuple(self.builder_config.size)
        sound = [scan for scan in self._found() if not scan.fault]
        features: dict[str, Any] = {
            "volume": tfds.features.Tensor(shape=(*size, 1), dtype=np.uint8),
            "label": tfds.features.ClassLabel(names=sorted({scan.kind for scan in sound})),
            "file": tfds.features.Text(),
        }
        if any(scan.mask for scan in sound):
            features["segmentation"] = tfds.features.Tensor(shape=size, dtype=np.uint8)
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{len(sound)} scans of {self.builder_config.folder}",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(voxel_mm=edge(sound, size)),
        )

    def _found(self) -> list[Scan]:
        if not self._scans:
            self._scans = checked(list(self.find(self.builder_config.folder)), self.NAME)
        return self._scans

    def _items(self):
        splits = split(self._found())
        voxel = self.info.metadata["voxel_mm"]
        print(f"{len(self._found())} scans, on voxels of {voxel:.3g} mm", flush=True)
        return {name: [(scan.name, scan) for scan in part] for name, part in splits.items()}

    def _examples(self, content: Scan) -> Iterator[dict]:
        if content.fault:
            raise DataError(content.fault)
        size, voxel = tuple(self.builder_config.size), float(self.info.metadata["voxel_mm"])
        volume, mask = self.read(content)
        name, spacing = str(content.files[0]), content.spacing
        shown = volumes.windowed(volume, name)
        with named(name):
            example = {
                "volume": volumes.to_uint8(volumes.fitted(shown, spacing, voxel, size)),
                "label": content.kind,
                "file": content.name,
            }
            if mask is not None:
                example["segmentation"] = volumes.fitted_mask(mask, spacing, voxel, size)
        yield example


def edge(scans: Sequence[Scan], size: tuple[int, ...]) -> float:
    """See `volumes.holding_edge`."""
    sizes, spacings = (np.asarray([getattr(s, name) for s in scans]) for name in
                       ("size", "spacing"))  # fmt: skip
    return volumes.holding_edge(sizes, spacings, size)


def checked(scans: list[Scan], kind: str) -> list[Scan]:
    """The scans, those with a fault that lack a mask and others have one.

    Raises:
      DataError: there are none that could be used.
    """
    if not scans or all(scan.fault for scan in scans):
        fault = f"; {scans[0].fault}" if scans else ""
        raise DataError(f"data.name={kind}: no scans in the folder{fault}")
    if not any(scan.mask for scan in scans):
        return scans
    fault = "{}: has no mask, and other scans have"
    return [
        scan if scan.mask else dataclasses.replace(scan, fault=fault.format(scan.files[0]))
        for scan in scans
    ]


def need(package: str, kind: str) -> None:
    """Raises:
    ValueError: a package of the extra `medical` is absent.
    """
    import importlib.util

    if not importlib.util.find_spec(package):
        raise ValueError(
            f"data.name={kind} needs {package}, of the extra medical; "
            "bash launch/local.sh --setup-only --extras=medical"
        )
