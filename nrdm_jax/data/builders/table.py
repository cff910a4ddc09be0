"""Data sets by name, and their preparation: once, whole or not at all, by one process at a time."""

import fcntl
import os
import pathlib
import sys
from typing import Any

import tensorflow_datasets as tfds

from nrdm_jax.data.builders.cifar10 import Cifar10
from nrdm_jax.data.builders.dicom_folder import DicomFolder
from nrdm_jax.data.builders.fashion_mnist import FashionMnist
from nrdm_jax.data.builders.hippocampus import Hippocampus
from nrdm_jax.data.builders.modelnet import Modelnet
from nrdm_jax.data.builders.moving_emoji import MovingEmoji
from nrdm_jax.data.builders.nifti_folder import NiftiFolder
from nrdm_jax.data.builders.openmoji import Openmoji
from nrdm_jax.data.builders.solids import Solids
from nrdm_jax.data.builders.sweethome3d import Sweethome3d
from nrdm_jax.data.errors import DataError

# Nothing is fetched at run time, not even the list of what could be.
tfds.core.utils.gcs_utils._is_gcs_disabled = True

BUILDERS: dict[str, Any] = {
    "openmoji": Openmoji,
    "moving_emoji": MovingEmoji,
    "fashion_mnist": FashionMnist,
    "cifar10": Cifar10,
    "solids": Solids,
    "hippocampus": Hippocampus,
    "modelnet": Modelnet,
    "sweethome3d": Sweethome3d,
}
# Those of files that a user has: data.name=NAME:PATH. Their `config_for` takes the path as well.
FOLDERS: dict[str, Any] = {
    "nifti_folder": NiftiFolder,
    "dicom_folder": DicomFolder,
}


def prepared(name: str, shape: tuple[int, ...], data_dir: str):
    """A prepared TFDS builder for `data.name`; ours are made on first use.

    Raises:
      ValueError: the name is unknown, or the set has no records of this shape.
      DataError: there is nothing to prepare it from.
    """
    if name.startswith("tfds:"):
        return _read_only(name.removeprefix("tfds:"), data_dir)
    kind, _, place = name.partition(":")
    if name in BUILDERS:
        cls, config = BUILDERS[name], BUILDERS[name].config_for(shape)
    elif kind in FOLDERS and place:
        cls, config = FOLDERS[kind], FOLDERS[kind].config_for(shape, pathlib.Path(place))
    else:
        folders = "".join(f"{folder}:PATH, " for folder in FOLDERS)
        raise ValueError(
            f"data.name is {name!r}; choose one of {', '.join(BUILDERS)}, {folders}synthetic, "
            "tfds:NAME"
        )
    pathlib.Path(data_dir).mkdir(parents=True, exist_ok=True)
    with open(pathlib.Path(data_dir) / f".{kind}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        builder = cls(config=config, data_dir=data_dir, file_format="array_record")
        if not builder.is_prepared():
            print(f"preparing data set {builder.info.full_name} in {data_dir}", flush=True)
            if not sys.stderr.isatty():
                tfds.disable_progress_bar()
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
    return builder


def split_of(builder, split: str) -> str:
    """The data set's own name of `train` or `heldout`."""
    if split == "train":
        return split
    own = (name for name in ("heldout", "validation", "test") if name in builder.info.splits)
    return next(own, "heldout")


def _read_only(name: str, data_dir: str):
    try:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, FileNotFoundError) as error:
        where = os.path.abspath(data_dir)
        raise DataError(
            f"data.name=tfds:{name} is not prepared in {where}; prepare it there with "
            "file_format='array_record', or set data.dir or TFDS_DATA_DIR to where it is"
        ) from error
