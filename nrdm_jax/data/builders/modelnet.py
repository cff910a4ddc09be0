"""ModelNet10's chairs (889) and monitors (465) as voxels (academic use).

Read from an archive of occupancy, 32^3 bits each, [x, y, z] with z up: the one beside the project
(../shared/data/modelnet_voxels32.npz), or NRDM_MODELNET. data.shape is (32, 32, 32, 1), or half or
a quarter of it: the mean of the voxels within. A volume is indexed [z, y, x], see `data.voxels`.
Some shapes are in it more than once (839 different chairs), so that a tenth is held out by what
they are; two are empty, and left out.
"""

import hashlib
import os
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from nrdm_jax.bounded_archives import open_archive, read_array
from nrdm_jax.data.builders.items import ItemsBuilder
from nrdm_jax.data.errors import DataError, named
from nrdm_jax.data.shard_files import Item

ENVIRONMENT = "NRDM_MODELNET"
BESIDE = pathlib.Path(__file__).resolve().parents[4] / "shared" / "data" / "modelnet_voxels32.npz"
SIDE = 32
SIZES = (32, 16, 8)
CLASSES = ("chair", "monitor")


class ModelnetConfig(tfds.core.BuilderConfig):
    """Side of the cube in voxels."""

    def __init__(self, size: int = SIDE):
        super().__init__(name=f"{size}", version="1.0.0")
        self.size = size


class Modelnet(ItemsBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Features: volume (size, size, size, 1) uint8, 255 inside; label (2 classes), caption."""

    VERSION = tfds.core.Version("1.0.0")
    SHAPE = (SIDE, SIDE, SIDE, 1)

    @staticmethod
    def config_for(shape: tuple[int, ...]) -> ModelnetConfig:
        """Raises:
        ValueError: the shape is no cube of 32, 16 or 8 voxels and one channel.
        """
        if len(shape) != 4 or shape[0] not in SIZES or shape != (shape[0],) * 3 + (1,):
            raise ValueError(
                f"data.shape is {shape}; modelnet has (n, n, n, 1) for n of "
                f"{', '.join(map(str, SIZES))}"
            )
        return ModelnetConfig(shape[0])

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.size
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            homepage="https://modelnet.cs.princeton.edu",
            features=tfds.features.FeaturesDict(
                {
                    "volume": tfds.features.Tensor(shape=(size, size, size, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(names=CLASSES),
                    "caption": tfds.features.Text(),
                }
            ),
        )

    def _items(self):
        found: dict[str, list[Item]] = {"train": [], "heldout": []}
        for kind, number, bits in shapes(archive_path()):
            split = "heldout" if is_heldout(bits) else "train"
            found[split].append((f"{kind} {number}", (kind, bits)))
        return found

    def _examples(self, content: tuple[str, np.ndarray]) -> Iterator[dict]:
        kind, bits = content
        volume = pooled(bits, self.builder_config.size)
        yield {"volume": volume, "label": kind, "caption": f"a {kind}"}


def is_heldout(bits: np.ndarray) -> bool:
    return hashlib.sha256(bits.tobytes()).digest()[0] < 256 // 10


def pooled(bits: np.ndarray, size: int) -> np.ndarray:
    """The packed bits of a shape -> (size, size, size, 1) uint8, 255 inside, means over blocks."""
    cube = np.unpackbits(bits).reshape(SIDE, SIDE, SIDE).T
    block = SIDE // size
    means = cube.reshape(size, block, size, block, size, block).mean(axis=(1, 3, 5))
    return np.rint(255 * means)[..., None].astype(np.uint8)


def archive_path() -> pathlib.Path:
    """Raises:
    DataError: there is no archive.
    """
    path = pathlib.Path(os.environ.get(ENVIRONMENT, BESIDE))
    if not path.exists():
        raise DataError(
            f"{path} is not there; set {ENVIRONMENT} to an .npz of {' and '.join(CLASSES)}, "
            "a shape a row of 32^3 bits"
        )
    return path


def shapes(archive: pathlib.Path):
    """Yields (class, number, packed bits (4096,)), of those that are not empty.

    Raises:
      DataError: the archive is damaged.
    """
    for kind in CLASSES:
        with named(str(archive)), open_archive(archive) as arrays:
            packed = read_array(arrays, kind)
        if packed.shape[1:] != (SIDE**3 // 8,) or packed.dtype != np.uint8:
            raise DataError(
                f"{archive}, {kind}: {packed.dtype} {packed.shape}, and not uint8 "
                f"(n, {SIDE**3 // 8})"
            )
        for number, bits in enumerate(packed):
            if bits.any():
                yield kind, number, bits
