"""Folders of scans that a user has, whatever the files: classes, splits, spacing, masks.

The class is the first sub-folder, or `all`. Held out is what lies in PATH/heldout, test or val, if
that is there beside PATH/train, and otherwise about 15 % of the subjects by a hash of their names.
Scans are turned to [z, y, x] (`data.volumes`) and brought to cubic voxels of one edge for the whole
set, with which nine scans of ten are kept as a whole; the others are cut around their middle.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from nrdm_jax.data import volumes
from nrdm_jax.data.errors import DataError

HELDOUT = ("heldout", "test", "val")  # folders


@dataclasses.dataclass(frozen=True)
class Scan:
    """One of a folder, not read yet.

    Attributes:
      name: its path within the folder, without a split.
      subject: who was scanned, or `name` where that is not known: never in both splits.
      kind: its class.
      heldout: None where no folder says.
      files: that it is read from, in no order.
      mask: a file of it, or None.
      size: (D, H, W) voxels.
      spacing: of those, mm.
    """

    name: str
    subject: str
    kind: str
    heldout: bool | None
    files: tuple[pathlib.Path, ...]
    mask: pathlib.Path | None
    size: tuple[int, ...]
    spacing: tuple[float, ...]


def place_of(path: pathlib.Path) -> tuple[str, str, bool | None]:
    """Name, class and split by the path of a scan within its folder."""
    parts, heldout = path.parts, None
    if len(parts) > 1 and (parts[0] == "train" or parts[0] in HELDOUT):
        heldout, parts = parts[0] != "train", parts[1:]
    return "/".join(parts), parts[0] if len(parts) > 1 else "all", heldout


def is_heldout(scan: Scan) -> bool:
    if scan.heldout is not None:
        return scan.heldout
    return hashlib.sha256(scan.subject.encode()).digest()[0] < 256 * 15 // 100


def contents(folder: pathlib.Path) -> str:
    """A hash of where a folder is and of what is in it, by names, sizes and times of change.

    Raises:
      DataError: there is no such folder, or nothing in it.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    if not files:
        raise DataError(f"data.name: there is nothing in {folder.resolve()}")
    listed = [str(folder.resolve())]
    for file in files:
        stat = file.stat()
        listed.append(f"{file.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()[:12]


class ScanFolderConfig(tfds.core.BuilderConfig):
    """Voxels along D, H, W, of a folder as it is now."""

    def __init__(self, size: tuple[int, ...], folder: pathlib.Path):
        super().__init__(name="x".join(map(str, size)) + f"-{contents(folder)}", version="1.0.0")
        self.size, self.folder = size, folder


class ScanFolder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Features: volume (D, H, W, 1) uint8, label (classes by folder), name; segmentation (D, H, W)
    uint8, if the scans have masks.

    A kind of file has a class of its own, which says how they are found and read.
    """

    VERSION = tfds.core.Version("1.0.0")
    NAME = "scan_folder"

    def __init__(self, **kwargs):
        self._scans: list[Scan] = []
        super().__init__(**kwargs)

    @staticmethod
    def find(folder: pathlib.Path) -> Iterator[Scan]:
        """The scans of a folder, by their headers."""
        raise NotImplementedError

    @staticmethod
    def read(scan: Scan) -> tuple[np.ndarray, np.ndarray | None]:
        """(D, H, W) intensities, and the classes of its mask."""
        raise NotImplementedError

    @classmethod
    def config_for(cls, shape: tuple[int, ...], folder: pathlib.Path) -> ScanFolderConfig:
        """Raises:
        ValueError: the shape is no volume of one channel.
        DataError: there is nothing in the folder.
        """
        if len(shape) != 4 or shape[3] != 1:
            raise ValueError(
                f"data.shape is {shape}; {cls.NAME} has (d, h, w, 1) for any numbers of voxels"
            )
        return ScanFolderConfig(shape[:3], folder)

    def _info(self) -> tfds.core.DatasetInfo:
        folder, size = self.builder_config.folder, tuple(self.builder_config.size)
        found = self._found()
        features: dict[str, Any] = {
            "volume": tfds.features.Tensor(shape=(*size, 1), dtype=np.uint8),
            "label": tfds.features.ClassLabel(names=sorted({scan.kind for scan in found})),
            "name": tfds.features.Text(),
        }
        if found[0].mask:
            features["segmentation"] = tfds.features.Tensor(shape=size, dtype=np.uint8)
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{len(found)} scans of {folder}",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(voxel_mm=self.voxel()),
        )

    def _found(self) -> list[Scan]:
        if not self._scans:
            self._scans = checked(list(self.find(self.builder_config.folder)), self.NAME)
        return self._scans

    def voxel(self) -> float:
        """Edge of a voxel, mm."""
        return edge(self._found(), tuple(self.builder_config.size))

    def _split_generators(self, dl_manager):
        splits = {
            "train": [scan for scan in self._found() if not is_heldout(scan)],
            "heldout": [scan for scan in self._found() if is_heldout(scan)],
        }
        for split, chosen in splits.items():
            if not chosen:
                raise DataError(
                    f"none of the {len(self._found())} scans in {self.builder_config.folder} is in "
                    f"{split}; put them into folders train and heldout in it"
                )
        print(f"{len(self._found())} scans, on voxels of {self.voxel():.3g} mm", flush=True)
        return {split: self._generate_examples(chosen) for split, chosen in splits.items()}

    def _generate_examples(self, scans: Sequence[Scan]):
        size, voxel = tuple(self.builder_config.size), self.voxel()
        for scan in scans:
            volume, mask = self.read(scan)
            shown = volumes.windowed(volume, scan.name)
            example = {
                "volume": volumes.to_uint8(volumes.fitted(shown, scan.spacing, voxel, size)),
                "label": scan.kind,
                "name": scan.name,
            }
            if mask is not None:
                example["segmentation"] = volumes.fitted_mask(mask, scan.spacing, voxel, size)
            yield f"{scan.heldout} {scan.name}", example


def edge(scans: Sequence[Scan], size: tuple[int, ...]) -> float:
    """See `volumes.holding_edge`."""
    sizes, spacings = (np.asarray([getattr(s, name) for s in scans]) for name in
                       ("size", "spacing"))  # fmt: skip
    return volumes.holding_edge(sizes, spacings, size)


def checked(scans: list[Scan], kind: str) -> list[Scan]:
    """Raises:
    DataError: there are none, or some have masks and some have not.
    """
    if not scans:
        raise DataError(f"data.name={kind}: no scans in the folder")
    without = [scan for scan in scans if not scan.mask]
    if 0 < len(without) < len(scans):
        raise DataError(
            f"{without[0].name} has no mask, as {len(scans) - len(without)} of {len(scans)} have; "
            "give it one, or take the scan away"
        )
    return scans


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
