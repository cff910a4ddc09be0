"""A small valid file of each format that is one file, as those who write such files write them."""

import gzip
import io
import json
import pathlib
import tarfile
import zipfile
from typing import Any

import numpy as np
from PIL import Image

from nrdm_jax.checkpointing import notes
from nrdm_jax.data.builders import sweethome3d
from nrdm_jax.evaluation import feature_sets

SIDE = 12  # of pictures


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


def text_opcode(text: str) -> bytes:
    """A pickle's."""
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


def pickled_state() -> bytes:
    """The pickle of {"w": (2, 3) floats of the storage "0"}, as torch's pickler writes it."""
    storage = (
        b"("
        + text_opcode("storage")
        + b"ctorch\nFloatStorage\n"
        + text_opcode("0")
        + text_opcode("cpu")
        + b"K\x06tQ"
    )
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage
    tensor += b"K\x00K\x02K\x03\x86K\x03K\x01\x86\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + text_opcode("w") + tensor + b"u."


def torch_archive(path: pathlib.Path, pickled: bytes | None = None) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled or pickled_state())
        archive.writestr("a/byteorder", "little")
        archive.writestr("a/data/0", np.arange(6, dtype="f4").tobytes())


def torch_pickles(path: pathlib.Path, pickled: bytes | None = None) -> None:
    magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
    system = (
        b"\x80\x02}("
        + text_opcode("protocol_version")
        + b"M\xe9\x03"
        + text_opcode("little_endian")
        + b"\x88u."
    )
    numbers = (6).to_bytes(8, "little") + np.arange(6, dtype="f4").tobytes()
    keys = b"\x80\x02](" + text_opcode("0") + b"e."
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


MESH = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 2 3\nf 1 2 4\nf 1/1 3/2 4/3\nf -3 -2 -1\n"


def obj(path: pathlib.Path, text: str = MESH) -> None:
    """A catalogue of Sweet Home 3D, which has OBJ files within."""
    properties = "name#1=A chair\ncategory#1=Office\nmodel#1=/a/chair.obj\n"
    properties += "modelRotation#1=1 0 0 0 1 0 0 0 1\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(sweethome3d.PROPERTIES, properties)
        archive.writestr("a/chair.obj", text)


# Archives of pictures, scans and shapes


def tar_of_pictures(path: pathlib.Path) -> None:
    content = io.BytesIO()
    Image.fromarray(noise(32, 32, 3)).save(content, "JPEG")
    with tarfile.open(path, "w:xz") as archive:
        for split in ("train", "test"):
            member = tarfile.TarInfo(f"{split}/cat/0.jpg")
            member.size = len(content.getvalue())
            archive.addfile(member, io.BytesIO(content.getvalue()))


def zip_of_strips(path: pathlib.Path) -> None:
    content = io.BytesIO()
    Image.fromarray(noise(64, 128, 3)).save(content, "WEBP")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bend_down/0.webp", content.getvalue())


def idx(path: pathlib.Path) -> None:
    content = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (2, 4, 3)) + bytes(24)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def brains(path: pathlib.Path) -> None:
    """Hippocampus's archive."""
    np.savez(path, image_001=noise(5, 6, 7), mask_001=noise(5, 6, 7) % 3)


def chairs(path: pathlib.Path) -> None:
    """ModelNet's archive."""
    np.savez(path, chair=noise(2, 4096), monitor=noise(1, 4096))


def features(path: pathlib.Path) -> None:
    """What is kept of a set's features."""
    found = feature_sets.FeatureSet()
    found.add(noise(6, 4).astype("f8"), None, None, np.arange(6) % 2)
    feature_sets.save(path, found, {"net": "efflite0"})


# Checkpoints


def note(path: pathlib.Path) -> None:
    meta = {"step": 3, "records_seen": 48, "metrics": {"heldout_loss": 0.5}}
    path.write_text(json.dumps(notes.signed(meta, {"params/a": 2**31 + 7, "ema/a": 9})))
