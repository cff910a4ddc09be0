"""Data sets by name, and their preparation: once, whole or not at all, by one process at a time."""

import fcntl
import json
import os
import pathlib
import time
from typing import Any

import tensorflow_datasets as tfds

from nrdm_jax.bounded_files import check_name
from nrdm_jax.data import listings, manifest
from nrdm_jax.data.builders.cifar10 import Cifar10
from nrdm_jax.data.builders.dicom_folder import DicomFolder
from nrdm_jax.data.builders.fashion_mnist import FashionMnist
from nrdm_jax.data.builders.fluent_emoji import FluentEmoji
from nrdm_jax.data.builders.hippocampus import Hippocampus
from nrdm_jax.data.builders.image_folder import ImageFolder
from nrdm_jax.data.builders.modelnet import Modelnet
from nrdm_jax.data.builders.moving_emoji import MovingEmoji
from nrdm_jax.data.builders.nifti_folder import NiftiFolder
from nrdm_jax.data.builders.openmoji import Openmoji
from nrdm_jax.data.builders.solids import Solids
from nrdm_jax.data.builders.sweethome3d import Sweethome3d
from nrdm_jax.data.builders.video_folder import VideoFolder
from nrdm_jax.data.builders.weizmann import Weizmann
from nrdm_jax.data.errors import DataError, named
from nrdm_jax.data.prepared import open_directory

# Nothing is fetched at run time, not even the list of what could be; and for what is known of a set
# TFDS would leave an empty directory in /tmp whenever one is opened.
tfds.core.utils.gcs_utils._is_gcs_disabled = True
tfds.core.DatasetInfo.initialize_from_bucket = lambda self: None

BUILDERS: dict[str, Any] = {
    "openmoji": Openmoji,
    "moving_emoji": MovingEmoji,
    "fashion_mnist": FashionMnist,
    "cifar10": Cifar10,
    "solids": Solids,
    "weizmann": Weizmann,
    "fluent_emoji": FluentEmoji,
    "hippocampus": Hippocampus,
    "modelnet": Modelnet,
    "sweethome3d": Sweethome3d,
}
# Those of files that a user has: data.name=NAME:PATH. Their `config_for` takes the path as well.
FOLDERS: dict[str, Any] = {
    "image_folder": ImageFolder,
    "video_folder": VideoFolder,
    "nifti_folder": NiftiFolder,
    "dicom_folder": DicomFolder,
}
# One whose records come in sizes of their own may have `config_among(shape, shapes[, path])` beside
# `config_for(shape[, path])`: the config of a set of those training records only whose nearest of
# the shapes, by `pictures.nearest`, is this one; it raises NoRecordsError where there
# are none. Others have all their records at each shape.

# Those whose `config_for` takes the stride of the frames.
STRIDED = ("weizmann", "video_folder")


def opened(
    name: str,
    shape: tuple[int, ...] | None,
    data_dir: str,
    *,
    stride: int = 1,
    among: tuple[tuple[int, ...], ...] = (),
):
    """A TFDS builder for `data.name`, prepared or not. A folder of files is listed, and of scans
    the headers are read, unless `listings` knows what it is prepared as.

    Args:
      name: a key of `BUILDERS`, FOLDER:PATH, or tfds:NAME[/CONFIG][:VERSION].
      shape: of an example; None is the set's own choice.
      data_dir: of prepared sets.
      stride: of the frames of `STRIDED`.
      among: shapes of buckets, the shape's among them, see `FOLDERS`; empty: there are none.

    Raises:
      ValueError: the name is unknown, or the set has no records of this shape.
      DataError: a folder cannot be used, or what is prepared is damaged, or a TFDS data set is not
        prepared.
    """
    if name.startswith("tfds:"):
        return _read_only(name.removeprefix("tfds:"), data_dir)
    kind, _, place = name.partition(":")
    if name in BUILDERS:
        cls, given = BUILDERS[name], []
    elif kind in FOLDERS and place:
        cls, given = FOLDERS[kind], [pathlib.Path(place)]
        known = listings.directory_of(_asked(name, shape, stride, among), data_dir)
        if known:
            return open_directory(known)
    else:
        folders = "".join(f"{folder}:PATH, " for folder in FOLDERS)
        raise ValueError(
            f"data.name is {name!r}; choose one of {', '.join(BUILDERS)}, {folders}synthetic, "
            "tfds:NAME"
        )
    strided = {"stride": stride} if kind in STRIDED else {}
    if among and hasattr(cls, "config_among"):
        config = cls.config_among(shape, among, *given, **strided)
    else:
        config = cls.config_for(tuple(shape or cls.SHAPE), *given, **strided)
    with named(f"{data_dir}, {name}", ": what is prepared is damaged"):
        return cls(config=config, data_dir=data_dir, file_format="array_record")


def prepared(
    name: str,
    shape: tuple[int, ...] | None,
    data_dir: str,
    *,
    corrupt: str = "skip",
    stride: int = 1,
    among: tuple[tuple[int, ...], ...] = (),
):
    """A prepared TFDS builder for `data.name`; ours are made on first use.

    Args:
      corrupt: skip | fail, what is done about items that cannot be used.
      name, shape, data_dir, stride, among: as of `opened`.

    Raises:
      ValueError: the name is unknown, or the set has no records of this shape.
      DataError: there is nothing to prepare it from, or items are corrupt that may not be.
    """
    builder = opened(name, shape, data_dir, stride=stride, among=among)
    if not name.startswith("tfds:") and not builder.is_prepared():
        pathlib.Path(data_dir).mkdir(parents=True, exist_ok=True)
        kind = name.partition(":")[0]
        with open(pathlib.Path(data_dir) / f".{kind}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Another process may have prepared it while this one waited.
            builder = opened(name, shape, data_dir, stride=stride, among=among)
            builder.corrupt = corrupt
            if not builder.is_prepared():
                _prepare(builder)
    home = pathlib.Path(builder.data_dir)
    if name.partition(":")[0] in FOLDERS:
        listings.note(_asked(name, shape, stride, among), data_dir, home)
    left_out = manifest.left_out(home)
    if left_out and corrupt == "fail":
        raise DataError(
            f"data.corrupt=fail, and {len(left_out)} items are not in {builder.data_dir}: "
            f"{next(iter(left_out.values()))}; set it to skip, or repair them and remove that "
            "directory"
        )
    return builder


def _asked(name: str, *how) -> str:
    """Stands for what was asked for of a folder of files."""
    return json.dumps([name, *how])


def _prepare(builder) -> None:
    print(f"preparing data set {builder.info.full_name} in {builder.data_dir}", flush=True)
    begun = time.monotonic()
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    seconds = time.monotonic() - begun
    count = sum(split.num_examples for split in builder.info.splits.values())
    print(f"prepared {count:,} records, {count / seconds:,.0f}/s", flush=True)


def split_of(builder, split: str) -> str:
    """The data set's own name of `train` or `heldout`."""
    if split == "train":
        return split
    own = (name for name in ("heldout", "validation", "test") if name in builder.info.splits)
    return next(own, "heldout")


def _read_only(name: str, data_dir: str):
    # What `builder_from_files` does first: the rest of it trusts the files.
    find = tfds.core.utils.error_utils.reraise_with_context(tfds.core.DatasetNotFoundError)(
        tfds.core.read_only_builder._find_builder_dir
    )
    try:
        check_name(name.replace(":", "/"))
        home = find(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, FileNotFoundError):
        home = None
    except ValueError as error:
        raise ValueError(f"data.name=tfds:{name}: {error}") from error
    if home is None:
        where = os.path.abspath(data_dir)
        raise DataError(
            f"data.name=tfds:{name} is not prepared in {where}; prepare it there with "
            "file_format='array_record', or set data.dir or TFDS_DATA_DIR to where it is"
        )
    return open_directory(pathlib.Path(home))
