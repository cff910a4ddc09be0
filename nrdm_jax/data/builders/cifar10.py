"""CIFAR-10: 50,000 + 10,000 colour photographs, 32 x 32, 10 balanced classes (research use).

Read from an archive of JPEGs, train/<class>/NNNN.jpg and test/<class>/NNNN.jpg: the one beside the
project (../shared/data/cifar10_jpeg.tar.xz), or NRDM_CIFAR10. Being encoded again, its scores are
not comparable with published ones; for those, prepare TFDS's cifar10 and use
data.name=tfds:cifar10.
"""

import io
import os
import pathlib
import re
import tarfile
from collections.abc import Iterator

import tensorflow_datasets as tfds
from PIL import Image

from nrdm_jax.data import pictures
from nrdm_jax.data.builders.items import ItemsBuilder
from nrdm_jax.data.errors import DataError, named
from nrdm_jax.data.shard_files import Item

CLASSES = ("airplane", "automobile", "bird", "cat", "deer",
           "dog", "frog", "horse", "ship", "truck")  # fmt: skip
MOST_BYTES, MOST_UNPACKED = 2**20, 2**30  # of a picture, and of all: those of 32 x 32 are small
# Of what is no file, such as a long name: tarfile reads it whole, and before Python 3.11.10 in a
# time of the square of it (CVE-2024-6232). A path has at most as many.
MOST_HEADER = 2**12
ENVIRONMENT = "NRDM_CIFAR10"
BESIDE = pathlib.Path(__file__).resolve().parents[4] / "shared" / "data" / "cifar10_jpeg.tar.xz"
MEMBER = re.compile(r"^(?:\./)?(?:[\w-]+/)?(train|test)/(\w+)/(\w+)\.jpe?g$")


class Cifar10(ItemsBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Features: image (32, 32, 3), label. Splits: train, heldout (the published test set)."""

    VERSION = tfds.core.Version("1.0.0")
    SHAPE = (32, 32, 3)

    @staticmethod
    def config_for(shape: tuple[int, ...]) -> None:
        """Raises:
        ValueError: the shape is not (32, 32, 3).
        """
        if shape != (32, 32, 3):
            raise ValueError(f"data.shape is {shape}; cifar10 has (32, 32, 3)")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=CLASSES),
                }
            ),
        )

    def _items(self):
        archive = archive_path()
        items: dict[str, list[Item]] = {"train": [], "heldout": []}
        for name, (split, label), data in members(archive):
            items["train" if split == "train" else "heldout"].append((name, (name, label, data)))
        return items

    def _examples(self, content: tuple[str, str, bytes]) -> Iterator[dict]:
        name, label, data = content
        yield {"image": decode(archive_path(), name, data), "label": label}


def archive_path() -> pathlib.Path:
    """Raises:
    DataError: there is no archive.
    """
    path = pathlib.Path(os.environ.get(ENVIRONMENT, BESIDE))
    if not path.exists():
        raise DataError(
            f"{path} is not there; set {ENVIRONMENT} to an archive of train/<class>/*.jpg and "
            "test/<class>/*.jpg, or prepare TFDS's cifar10 and use data.name=tfds:cifar10"
        )
    return path


def members(archive: pathlib.Path):
    """Yields (name, (split, class), bytes) of the pictures in the archive; nothing is unpacked to
    disk.

    Raises:
      DataError: the archive is damaged.
    """
    with named(str(archive)), tarfile.open(archive, tarinfo=_SmallMember) as tar:
        for member in tar:
            # Where tarfile keeps all, of which a few bytes can be any number.
            tar.members = []  # type: ignore[attr-defined]
            found = MEMBER.match(member.name)
            # As a pax header may have it: what comes next would be what has been.
            if member.size < 0:
                raise DataError(f"its member {member.name!r} has {member.size:,} bytes")
            # Where it ends, and so with all headers.
            if member.offset_data + member.size > MOST_UNPACKED:
                raise DataError(f"unpacks to more than {MOST_UNPACKED:,} bytes")
            if member.isreg() and found and found[2] in CLASSES:
                with tar.extractfile(member) as file:  # type: ignore[union-attr]
                    yield member.name, (found[1], found[2]), file.read(MOST_BYTES)


class _SmallMember(tarfile.TarInfo):
    """A header of tar, also one that tarfile itself reads whole, such as a long name's."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        found = super().frombuf(buf, encoding, errors)
        if found.type == tarfile.GNUTYPE_SPARSE:
            raise DataError(f"its member {found.name!r} is sparse")  # of a list without end
        most = MOST_BYTES if found.isreg() else MOST_HEADER
        # Of less than none, all that is left would be read.
        if not 0 <= found.size <= most:
            raise DataError(
                f"its member {found.name!r} has {found.size:,} bytes; it may have {most:,}"
            )
        return found


def decode(archive: pathlib.Path, name: str, data: bytes) -> Image.Image:
    """Raises:
    DataError: the bytes are no 32 x 32 picture, naming file and member.
    """
    with (
        named(f"{archive}, {name}", ": cannot be decoded"),
        pictures.opened(io.BytesIO(data)) as picture,
    ):
        if picture.size != (32, 32):
            raise DataError(f"is {picture.size}, not 32 x 32")
        return picture.convert("RGB")
