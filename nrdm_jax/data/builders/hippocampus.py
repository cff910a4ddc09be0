"""Hippocampus: 260 MRI scans of the Medical Segmentation Decathlon (task 4, CC-BY-SA 4.0), with the
anterior and posterior hippocampus drawn in.

Read from an archive of arrays, image_NNN and mask_NNN, [x, y, z] of 1 mm (RAS+): the one beside the
project (../shared/data/hippocampus_mri.npz), or NRDM_HIPPOCAMPUS. Of a median 35 x 50 x 36 mm the
middle 32 x 48 x 32 are kept, in which 95 % of the scans have all of what is drawn in and none loses
more than 1.4 %: data.shape (32, 48, 32, 1) is of 1 mm, (16, 24, 16, 1) of 2 mm. A volume is indexed
[z, y, x], see `data.volumes`. A scan each, of a patient each, about 15 % held out by number.
"""

import hashlib
import os
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from nrdm_jax.bounded_archives import array_names, open_archive, read_array
from nrdm_jax.data import volumes
from nrdm_jax.data.builders.items import ItemsBuilder
from nrdm_jax.data.errors import DataError, named
from nrdm_jax.data.shard_files import Item

ENVIRONMENT = "NRDM_HIPPOCAMPUS"
BESIDE = pathlib.Path(__file__).resolve().parents[4] / "shared" / "data" / "hippocampus_mri.npz"
COVERED = (32, 48, 32)  # mm
CLASSES = ("background", "anterior", "posterior")  # of the segmentation


def is_heldout(number: str) -> bool:
    return hashlib.sha256(f"hippocampus_{number}".encode()).digest()[0] < 256 * 15 // 100


class HippocampusConfig(tfds.core.BuilderConfig):
    """Voxels along D, H, W."""

    def __init__(self, size: tuple[int, ...] = COVERED):
        super().__init__(name="x".join(map(str, size)), version="1.0.0")
        self.size = size


class Hippocampus(ItemsBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Features: volume (D, H, W, 1) uint8, segmentation (D, H, W) uint8 (3 classes), label (one
    class), number."""

    VERSION = tfds.core.Version("1.0.0")
    SHAPE = (*COVERED, 1)

    @staticmethod
    def config_for(shape: tuple[int, ...]) -> HippocampusConfig:
        """Raises:
        ValueError: the shape is no volume of one channel.
        """
        if len(shape) != 4 or shape[3] != 1:
            raise ValueError(
                f"data.shape is {shape}; hippocampus has (d, h, w, 1) for any numbers of voxels, "
                "such as (32, 48, 32, 1)"
            )
        return HippocampusConfig(shape[:3])

    def _info(self) -> tfds.core.DatasetInfo:
        size = tuple(self.builder_config.size)
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            license="CC-BY-SA 4.0",
            homepage="http://medicaldecathlon.com",
            features=tfds.features.FeaturesDict(
                {
                    "volume": tfds.features.Tensor(shape=(*size, 1), dtype=np.uint8),
                    "segmentation": tfds.features.Tensor(shape=size, dtype=np.uint8),
                    "label": tfds.features.ClassLabel(names=("hippocampus",)),
                    "number": tfds.features.Text(),
                }
            ),
        )

    def _items(self):
        archive = archive_path()
        found: dict[str, list[Item]] = {"train": [], "heldout": []}
        for number in numbers(archive):
            split = "heldout" if is_heldout(number) else "train"
            found[split].append((number, (archive, number)))
        return found

    def _examples(self, content: tuple[pathlib.Path, str]) -> Iterator[dict]:
        archive, number = content
        scan, mask = read(archive, number)
        example = placed(scan, mask, tuple(self.builder_config.size), f"{archive}, image_{number}")
        yield example | {"label": "hippocampus", "number": number}


def placed(scan: np.ndarray, mask: np.ndarray, size: tuple[int, ...], name: str) -> dict:
    """`volume` and `segmentation` of a scan [x, y, z] of 1 mm."""
    voxel = max(mm / voxels for mm, voxels in zip(COVERED, size, strict=True))
    spacing = (1.0, 1.0, 1.0)
    shown = volumes.windowed(scan.T, name)
    return {
        "volume": volumes.to_uint8(volumes.fitted(shown, spacing, voxel, size)),
        "segmentation": volumes.fitted_mask(mask.T, spacing, voxel, size),
    }


def archive_path() -> pathlib.Path:
    """Raises:
    DataError: there is no archive.
    """
    path = pathlib.Path(os.environ.get(ENVIRONMENT, BESIDE))
    if not path.exists():
        raise DataError(
            f"{path} is not there; set {ENVIRONMENT} to an .npz of image_NNN and mask_NNN, or put "
            "the Decathlon's masks into PATH/masks, and use data.name=nifti_folder:PATH"
        )
    return path


def numbers(archive: pathlib.Path) -> list[str]:
    """Of the scans in the archive.

    Raises:
      DataError: the archive is damaged, or there is none.
    """
    with named(str(archive)), open_archive(archive) as arrays:
        names = sorted(name for name in array_names(arrays) if name.startswith("image_"))
    if not names:
        raise DataError(f"{archive} holds no image_NNN")
    return [name.removeprefix("image_") for name in names]


def read(archive: pathlib.Path, number: str) -> tuple[np.ndarray, np.ndarray]:
    """A scan and its mask, both [x, y, z].

    Raises:
      DataError: either is damaged, or they do not go together.
    """
    name = f"{archive}, image_{number}"
    with named(name, ": cannot be read"), open_archive(archive) as arrays:
        scan, mask = (read_array(arrays, f"{kind}_{number}") for kind in ("image", "mask"))
    sound = scan.ndim == 3 and scan.size and scan.dtype.kind in "iuf" and mask.dtype.kind in "iu"
    if not sound or scan.shape != mask.shape:
        raise DataError(
            f"{name}: {scan.dtype} {scan.shape} with a mask of {mask.dtype} {mask.shape}"
        )
    volumes.check_size(scan.shape, name)
    if mask.min() < 0 or mask.max() >= len(CLASSES):
        raise DataError(
            f"{name}: {scan.shape} with a mask of classes from {mask.min()}, classes up to "
            f"{mask.max()}; {', '.join(CLASSES)} are known"
        )
    return scan, mask
