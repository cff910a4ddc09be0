"""Every format that is read: a small valid file of it, and what of the package reads it as a run
does. For fuzzing, and for `hostile_files`, most of which are such files with something else in
them."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from benchmarks import valid_files, valid_folders
from benchmarks.valid_files import MESH
from benchmarks.valid_folders import SHAPE
from nrdm_jax import comparison, sample, weight_files
from nrdm_jax.bounded_files import MOST_JSON, read_bytes
from nrdm_jax.checkpointing import notes
from nrdm_jax.data import clips, folders, latent_shards, manifest, pictures, prepared, voxels
from nrdm_jax.data.builders import (
    cifar10,
    dicom_folder,
    fashion_mnist,
    hippocampus,
    modelnet,
    nifti_folder,
    sweethome3d,
    weizmann,
)
from nrdm_jax.data.latents import Encoded
from nrdm_jax.data.sources import TfdsSource, mapped
from nrdm_jax.evaluation import feature_sets
from nrdm_jax.processes.stored_config import open_config
from nrdm_jax.text import encoders

TRAIN_SHARD = "image_folder-train.array_record-00000-of-00001"
LATENT_SHARD = "latents-train.array_record-00000-of-00001"


@dataclasses.dataclass(frozen=True)
class Format:
    """A format by one file of it.

    Attributes:
      name: of the format, and of the file: its path below a folder of its own.
      make: (path) writes it, and what belongs to it beside it.
      read: (path) -> all that is in it, as an entry reads it.
    """

    name: str
    make: Callable[[pathlib.Path], object]
    read: Callable[[pathlib.Path], Any]


def made(name: str, folder: pathlib.Path) -> pathlib.Path:
    """The valid file of a format, in a folder of its own."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    FORMATS[name].make(path)
    return path


def read_picture(path: pathlib.Path) -> np.ndarray:
    return np.asarray(pictures.read_picture(path, str(path), SHAPE))


def read_clips(path: pathlib.Path) -> list[np.ndarray]:
    return list(clips.windows(clips.read_frames(path, SHAPE), 2))


def read_nifti(path: pathlib.Path) -> Any:
    return nifti_folder.header_of(path), nifti_folder.load(path)


def read_dicom(path: pathlib.Path) -> Any:
    (header,) = dicom_folder.slices((path,), pixels=False)
    str(header.get("PatientID"))
    found = dicom_folder.slices((path,), pixels=True)
    return [dicom_folder.intensities(part) for part in found], dicom_folder.affine_of(found)


def read_mesh(path: pathlib.Path) -> np.ndarray:
    text = path.read_bytes().decode("latin-1")
    return voxels.voxelised(*voxels.read_obj(text, str(path)), 8)


def read_catalogue(path: pathlib.Path) -> list[np.ndarray]:
    models = sweethome3d.models(path)
    return [sweethome3d.voxelised(path, model, 8) for model in models.values()]


def read_tar(path: pathlib.Path) -> list[Image.Image]:
    return [cifar10.decode(path, name, data) for name, _, data in cifar10.members(path)]


def read_strips(path: pathlib.Path) -> list[list[Image.Image]]:
    weizmann._opened.cache_clear()
    with mock.patch.dict(os.environ, {weizmann.ENVIRONMENT: str(path)}):
        return [weizmann.read_strip(name) for name, *_ in weizmann.members(path)]


def read_brains(path: pathlib.Path) -> list[dict]:
    found = [hippocampus.read(path, number) for number in hippocampus.numbers(path)]
    return [hippocampus.placed(*pair, (8, 12, 8), str(path)) for pair in found]


def read_modelnet(path: pathlib.Path) -> list[np.ndarray]:
    return [modelnet.pooled(bits, 8) for *_, bits in modelnet.shapes(path)]


def read_idx(path: pathlib.Path) -> np.ndarray:
    return fashion_mnist.read_idx(path.with_name("idx"))


def read_folder(path: pathlib.Path) -> list:
    found = folders.list_folder(path.parent, pictures.SUFFIXES)
    return [(file.key, file.caption) for files in found.splits.values() for file in files]


def read_encoder(path: pathlib.Path) -> Any:
    found = encoders.open_encoder("minilm", str(path.parent))
    return found.tokenize(["a cat"], 4), list(found.network.params.values())


def read_run_config(path: pathlib.Path) -> dict:
    return open_config(path.parent).to_dict()


def read_run(path: pathlib.Path) -> dict:
    """As runs are compared."""
    (found,) = comparison.read([str(path.parent)])
    return comparison.curves(found) | found.last


def read_note(path: pathlib.Path) -> Any:
    """What a checkpoint says of itself."""
    return notes.checked(read_bytes(path, MOST_JSON), str(path))


def read_prepared(path: pathlib.Path) -> Any:
    manifest.left_out(path.parent)
    source = TfdsSource(prepared.open_directory(path.parent), "train")
    every = np.arange(len(source))
    return source.gather(every), source.texts(every)


def read_latents(path: pathlib.Path) -> Any:
    latent_shards.bound(path.parent)
    source = Encoded(path.parent, "train")
    return source.gather(np.arange(len(source))), source.statistics.normed(np.zeros((1, 1, 1, 1)))


def _formats() -> Iterator[Format]:
    write, folder = valid_files, valid_folders
    for name, make in (
        ("a.safetensors", write.safetensors), ("a.npz", write.npz),
        ("archive.pth", write.torch_archive), ("pickles.pth", write.torch_pickles),
    ):  # fmt: skip
        yield Format(name, make, weight_files.read_weights)
    for kind in ("png", "jpg", "webp", "bmp", "gif", "tif", "ppm"):
        yield Format(f"picture.{kind}", write.picture, read_picture)
    for kind in ("gif", "webp", "apng"):
        yield Format(f"clip.{kind}", write.animation, read_clips)
    for kind in ("mp4", "mkv", "avi"):
        yield Format(f"clip.{kind}", write.video, read_clips)
    for name in ("a.nii", "a.nii.gz"):
        yield Format(name, write.nifti, read_nifti)
    yield Format("a.dcm", write.dicom, read_dicom)
    yield Format("rle.dcm", lambda path: write.dicom(path, syntax="RLELossless"), read_dicom)
    yield Format("mesh.obj", lambda path: path.write_text(MESH), read_mesh)
    yield Format("furniture.sh3f", write.obj, read_catalogue)
    yield Format("cifar10.tar.xz", write.tar_of_pictures, read_tar)
    yield Format("weizmann.zip", write.zip_of_strips, read_strips)
    yield Format("hippocampus.npz", write.brains, read_brains)
    yield Format("modelnet.npz", write.chairs, read_modelnet)
    for name in ("idx", "idx.gz"):
        yield Format(name, write.idx, read_idx)
    yield Format("array.npy", lambda path: np.save(path, write.noise(4, 3)), mapped)
    yield Format("features.npz", write.features, feature_sets.load)
    for name in ("captions.jsonl", "0.txt"):
        yield Format(name, folder.image_folder, read_folder)
    yield Format("prompts.txt", lambda path: path.write_text("a cat\nein Hündchen\n"),
                 lambda path: sample.captions(str(path)))  # fmt: skip
    for name in ("config.json", "tokenizer.json", "model.safetensors.index.json",
                 "one.safetensors"):  # fmt: skip
        yield Format(f"encoder/{name}", folder.text_encoder, read_encoder)
    yield Format("run/config.json", folder.run, read_run_config)
    for name in ("metrics.jsonl", "env.json"):
        yield Format(f"run/{name}", folder.run, read_run)
    yield Format("meta/metadata", write.note, read_note)
    for name in (TRAIN_SHARD, "features.json", "dataset_info.json", manifest.MANIFEST):
        yield Format(f"prepared/{name}", folder.prepared_set, read_prepared)
    for name in (LATENT_SHARD, "statistics.json", latent_shards.BOUND):
        yield Format(f"latents/{name}", folder.latent_set, read_latents)


FORMATS = {one.name: one for one in _formats()}
