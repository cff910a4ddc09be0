"""A small valid file of every format that is read, and what of the package reads it: for fuzzing,
and for `hostile_files`, which are most of them such files with something else in them."""

import dataclasses
import gzip
import io
import json
import os
import pathlib
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from nrdm_jax import config, sample, weight_files
from nrdm_jax.data import clips, folders, latent_shards, manifest, pictures, prepared, voxels
from nrdm_jax.data.builders import (
    cifar10,
    dicom_folder,
    fashion_mnist,
    hippocampus,
    modelnet,
    nifti_folder,
    sweethome3d,
    table,
    weizmann,
)
from nrdm_jax.data.latents import Encoded
from nrdm_jax.data.sources import ArraySource, TfdsSource
from nrdm_jax.processes.workdir import read_whole_config
from nrdm_jax.text import encoders
from nrdm_jax.training.metrics import read_metrics

SHAPE = (8, 8, 3)  # that pictures are read at
SIDE = 12  # of those that are written


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


def noise(*shape: int) -> np.ndarray:
    """uint8."""
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


# Weights


def safetensors(path: pathlib.Path, **tensors: np.ndarray) -> None:
    tensors = tensors or {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, "f4")}
    header, at = {}, 0
    for name, values in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": values.shape,
            "data_offsets": [at, at + values.nbytes],
        }
        at += values.nbytes
    text = json.dumps(header).encode()
    data = b"".join(values.tobytes() for values in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def _text(text: str) -> bytes:
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


def pickled_state() -> bytes:
    """The pickle of {"w": (2, 3) floats of the storage "0"}, as torch's pickler writes it."""
    storage = (
        b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu") + b"K\x06tQ"
    )
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage
    tensor += b"K\x00K\x02K\x03\x86K\x03K\x01\x86\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + _text("w") + tensor + b"u."


def torch_archive(path: pathlib.Path, pickled: bytes | None = None) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled or pickled_state())
        archive.writestr("a/byteorder", "little")
        archive.writestr("a/data/0", np.arange(6, dtype="f4").tobytes())


def torch_pickles(path: pathlib.Path, pickled: bytes | None = None) -> None:
    magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
    system = (
        b"\x80\x02}("
        + _text("protocol_version")
        + b"M\xe9\x03"
        + _text("little_endian")
        + b"\x88u."
    )
    numbers = (6).to_bytes(8, "little") + np.arange(6, dtype="f4").tobytes()
    keys = b"\x80\x02](" + _text("0") + b"e."
    path.write_bytes(
        magic + b"\x80\x02M\xe9\x03." + system + (pickled or pickled_state()) + keys + numbers
    )


def npz(path: pathlib.Path) -> None:
    np.savez_compressed(path, a=np.arange(6), b=np.ones((2, 2), "f4"))


# Pictures and clips


def picture(path: pathlib.Path) -> None:
    format = {".apng": "PNG"}.get(path.suffix)
    Image.fromarray(noise(SIDE, SIDE, 3)).save(path, format=format)


def animation(path: pathlib.Path) -> None:
    first, *rest = (Image.fromarray(values) for values in noise(5, SIDE, SIDE, 3))
    format = {".apng": "PNG"}.get(path.suffix)
    first.save(path, format=format, save_all=True, append_images=rest, duration=40)


def video(path: pathlib.Path) -> None:
    import av

    codec = {".avi": "mjpeg", ".mkv": "mpeg4", ".mp4": "mpeg4"}[path.suffix]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.width, stream.height = 32, 16
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for values in noise(6, 16, 32, 3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(values, format="rgb24")))
        container.mux(stream.encode())


def read_clips(path: pathlib.Path) -> list[np.ndarray]:
    return list(clips.windows(clips.read_frames(path, SHAPE), 2))


# Scans and shapes


def nifti(path: pathlib.Path) -> None:
    import nibabel

    nibabel.save(nibabel.Nifti1Image(noise(4, 5, 6), np.diag([1.0, 1.0, 2.0, 1.0])), path)


def dicom(path: pathlib.Path, *, syntax: str = "ExplicitVRLittleEndian", **fields: Any) -> None:
    from pydicom import uid
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = uid.generate_uid(entropy_srcs=["a"])
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    part = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    part.SOPClassUID, part.SOPInstanceUID = uid.CTImageStorage, meta.MediaStorageSOPInstanceUID
    part.SeriesInstanceUID, part.PatientID = uid.generate_uid(entropy_srcs=["b"]), "p"
    part.ImageOrientationPatient, part.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 0]
    part.PixelSpacing, part.SliceThickness = [1, 1], 2
    part.Rows, part.Columns, part.SamplesPerPixel = 4, 5, 1
    part.PhotometricInterpretation = "MONOCHROME2"
    part.BitsAllocated, part.BitsStored, part.HighBit, part.PixelRepresentation = 16, 16, 15, 0
    part.PixelData = noise(4, 10).tobytes()
    if syntax == "RLELossless":
        part.compress(uid.RLELossless, generate_instance_uid=False)
    else:
        meta.TransferSyntaxUID = getattr(uid, syntax)
    for name, value in fields.items():
        setattr(part, name, value)
    part.save_as(path, enforce_file_format=True)


def read_dicom(path: pathlib.Path) -> Any:
    dicom_folder.slices((path,), pixels=False)
    found = dicom_folder.slices((path,), pixels=True)
    return [dicom_folder.intensities(part) for part in found], dicom_folder.affine_of(found)


MESH = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 2 3\nf 1 2 4\nf 1/1 3/2 4/3\nf -3 -2 -1\n"


def obj(path: pathlib.Path, text: str = MESH) -> None:
    """A catalogue of Sweet Home 3D, which has OBJ files within."""
    properties = "name#1=A chair\ncategory#1=Office\nmodel#1=/a/chair.obj\n"
    properties += "modelRotation#1=1 0 0 0 1 0 0 0 1\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(sweethome3d.PROPERTIES, properties)
        archive.writestr("a/chair.obj", text)


def read_catalogue(path: pathlib.Path) -> list[np.ndarray]:
    models = sweethome3d.models(path)
    return [sweethome3d.voxelised(path, model, 8) for model in models.values()]


def read_mesh(path: pathlib.Path) -> np.ndarray:
    text = path.read_bytes().decode("latin-1")
    return voxels.voxelised(*voxels.read_obj(text, str(path)), 8)


# Archives of pictures, scans and shapes


def tar_of_pictures(path: pathlib.Path) -> None:
    content = io.BytesIO()
    Image.fromarray(noise(32, 32, 3)).save(content, "JPEG")
    with tarfile.open(path, "w:xz") as archive:
        for split in ("train", "test"):
            member = tarfile.TarInfo(f"{split}/cat/0.jpg")
            member.size = len(content.getvalue())
            archive.addfile(member, io.BytesIO(content.getvalue()))


def read_tar(path: pathlib.Path) -> list[Image.Image]:
    return [cifar10.decode(path, name, data) for name, _, data in cifar10.members(path)]


def zip_of_strips(path: pathlib.Path) -> None:
    content = io.BytesIO()
    Image.fromarray(noise(64, 128, 3)).save(content, "WEBP")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bend_down/0.webp", content.getvalue())


def read_strips(path: pathlib.Path) -> list[list[Image.Image]]:
    os.environ[weizmann.ENVIRONMENT] = str(path)
    weizmann._opened.cache_clear()
    return [weizmann.read_strip(name) for name, *_ in weizmann.members(path)]


def read_brains(path: pathlib.Path) -> list[dict]:
    found = [hippocampus.read(path, number) for number in hippocampus.numbers(path)]
    return [hippocampus.placed(*pair, (8, 12, 8), str(path)) for pair in found]


def idx(path: pathlib.Path) -> None:
    content = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (2, 4, 3)) + bytes(24)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


# Texts


def image_folder(path: pathlib.Path) -> None:
    """What is fuzzed is the file beside three pictures."""
    for i in range(3):
        picture(path.with_name(f"{i}.png"))
    rows = [{"file_name": f"{i}.png", "text": f"picture {i}"} for i in range(3)]
    path.write_text("\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else "a picture")


def read_folder(path: pathlib.Path) -> list:
    found = folders.list_folder(path.parent, pictures.SUFFIXES)
    return [(file.key, file.caption) for files in found.splits.values() for file in files]


TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
    "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1, "cat": 2}, "unk_token": "[UNK]"},
}  # fmt: skip


def text_encoder(path: pathlib.Path) -> None:
    """The folder of a tiny MiniLM in two files."""
    folder, draw = path.parent, np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        f"embeddings.{name}_embeddings.weight": (rows, 4)
        for name, rows in (("word", 3), ("position", 8), ("token_type", 2))
    }
    norms = ["embeddings.LayerNorm"]
    for name in ("attention.self.query", "attention.self.key", "attention.self.value",
                 "attention.output.dense", "intermediate.dense", "output.dense"):  # fmt: skip
        shapes |= {f"encoder.layer.0.{name}.weight": (4, 4), f"encoder.layer.0.{name}.bias": (4,)}
    norms += [f"encoder.layer.0.{name}.LayerNorm" for name in ("attention.output", "output")]
    shapes |= {f"{name}.{part}": (4,) for name in norms for part in ("weight", "bias")}
    tensors = {name: draw.normal(size=shape).astype("f4") for name, shape in shapes.items()}
    names = list(tensors)
    files = {"one.safetensors": names[::2], "other.safetensors": names[1::2]}
    for file, chosen in files.items():
        safetensors(folder / file, **{name: tensors[name] for name in chosen})
    index = {name: file for file, chosen in files.items() for name in chosen}
    settings = {"num_attention_heads": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}
    for name, values in (
        ("model.safetensors.index.json", {"weight_map": index}),
        ("config.json", settings),
        ("tokenizer.json", TOKENIZER),
    ):
        (folder / name).write_text(json.dumps(values))


def read_encoder(path: pathlib.Path) -> Any:
    found = encoders.open_encoder("minilm", str(path.parent))
    return found.tokenize(["a cat"], 4), list(found.network.params.values())


# What the package writes itself


def run_config(path: pathlib.Path) -> None:
    path.write_text(json.dumps(config.to_dict(config.default())))


def read_run_config(path: pathlib.Path) -> dict:
    values = config.from_dict(read_whole_config(path.parent))
    config.validate(values)
    return values.to_dict()


def prepared_set(path: pathlib.Path) -> None:
    """A set of an image folder: `path` is one of its files."""
    pixels = path.parent / "pictures"
    for i in range(4):
        (pixels / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        picture(pixels / "ab"[i % 2] / f"{i}.png")
    builder = table.prepared(f"image_folder:{pixels}", SHAPE, str(path.parent / "sets"))
    for file in pathlib.Path(builder.data_dir).iterdir():
        os.replace(file, path.with_name(file.name.replace("-00000-of-00001", "")))
    shard = path.with_name("image_folder-train.array_record")
    os.replace(shard, path.with_name(f"{shard.name}-00000-of-00001"))
    heldout = path.with_name("image_folder-heldout.array_record")
    os.replace(heldout, path.with_name(f"{heldout.name}-00000-of-00001"))


def read_prepared(path: pathlib.Path) -> Any:
    manifest.left_out(path.parent)
    source = TfdsSource(prepared.open_directory(path.parent), "train")
    every = np.arange(len(source))
    return source.gather(every), source.texts(every)


def latent_set(path: pathlib.Path) -> None:
    count = 6
    pixels = ArraySource(
        noise(count, 4, 4, 1), np.arange(count) % 2, num_classes=2, fingerprint="f"
    )

    def encode(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        half = x[:, ::2, ::2].astype(np.float32)
        return half, half / 100

    writer = latent_shards.Writer(path.parent, (2, 2, 1), pixels)
    sources = {"train": pixels, "heldout": pixels}
    for split in sources:
        writer.write(pixels, split, 0, encode, lambda indices: {})
    writer.finish(sources, fingerprint="f", weights="w")


def read_latents(path: pathlib.Path) -> Any:
    source = Encoded(path.parent, "train")
    return source.gather(np.arange(len(source))), source.statistics.normed(np.zeros((1, 1, 1, 1)))


TRAIN_SHARD = "image_folder-train.array_record-00000-of-00001"
LATENT_SHARD = "latents-train.array_record-00000-of-00001"
FORMATS = {
    one.name: one
    for one in (
        *(Format(name, make, weight_files.read_weights) for name, make in (
            ("a.safetensors", safetensors), ("a.npz", npz), ("archive.pth", torch_archive),
            ("pickles.pth", torch_pickles),
        )),
        *(Format(f"picture.{kind}", picture,
                 lambda path: np.asarray(pictures.read_picture(path, str(path), SHAPE)))
          for kind in ("png", "jpg", "webp", "bmp", "gif", "tif", "ppm")),
        *(Format(f"clip.{kind}", animation, read_clips) for kind in ("gif", "webp", "apng")),
        *(Format(f"clip.{kind}", video, read_clips) for kind in ("mp4", "mkv", "avi")),
        *(Format(name, nifti,
                 lambda path: (nifti_folder.header_of(path), nifti_folder.load(path)))
          for name in ("a.nii", "a.nii.gz")),
        Format("a.dcm", dicom, read_dicom),
        Format("rle.dcm", lambda path: dicom(path, syntax="RLELossless"), read_dicom),
        Format("mesh.obj", lambda path: path.write_text(MESH), read_mesh),
        Format("furniture.sh3f", obj, read_catalogue),
        Format("cifar10.tar.xz", tar_of_pictures, read_tar),
        Format("weizmann.zip", zip_of_strips, read_strips),
        Format("hippocampus.npz",
               lambda path: np.savez(path, image_001=noise(5, 6, 7), mask_001=noise(5, 6, 7) % 3),
               read_brains),
        Format("modelnet.npz",
               lambda path: np.savez(path, chair=noise(2, 4096), monitor=noise(1, 4096)),
               lambda path: [bits for *_, bits in modelnet.shapes(path)]),
        *(Format(name, idx, lambda path: fashion_mnist.read_idx(path.with_name("idx")))
          for name in ("idx", "idx.gz")),
        *(Format(name, image_folder, read_folder) for name in ("captions.jsonl", "0.txt")),
        Format("prompts.txt", lambda path: path.write_text("a cat\nein Hündchen\n"),
               lambda path: sample.captions(str(path))),
        *(Format(f"encoder/{name}", text_encoder, read_encoder) for name in (
            "config.json", "tokenizer.json", "model.safetensors.index.json", "one.safetensors",
        )),
        Format("run/config.json", run_config, read_run_config),
        Format("run/metrics.jsonl",
               lambda path: path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2}\n'),
               lambda path: [list(row.items()) for row in read_metrics(path.parent)]),
        *(Format(f"prepared/{name}", prepared_set, read_prepared) for name in (
            TRAIN_SHARD, "features.json", "dataset_info.json", "manifest.json",
        )),
        *(Format(f"latents/{name}", latent_set, read_latents) for name in (
            LATENT_SHARD, "statistics.json",
        )),
    )
}  # fmt: skip


def made(name: str, folder: pathlib.Path) -> pathlib.Path:
    """The valid file of a format, in a folder of its own."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    FORMATS[name].make(path)
    return path
