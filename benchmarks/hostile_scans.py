"""Hostile scans, meshes and archives of data sets, as `nrdm data prepare` reads them."""

import gzip
import os
import pathlib
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks import valid_files
from benchmarks.fault_rows import Answer, Row
from benchmarks.hostile_pictures import jpeg
from benchmarks.hostile_reading import BAD_DATA, prepare, reading, row
from benchmarks.hostile_weights import archive
from nrdm_jax.data.builders import (
    cifar10,
    fashion_mnist,
    hippocampus,
    modelnet,
    sweethome3d,
    weizmann,
)

Make = Callable[[pathlib.Path], pathlib.Path]
# Bytes of a NIfTI-1 header.
DIM, DATATYPE, PIXDIM, OFFSET, SROW = 40, 70, 76, 108, 280


def scan(name: str, **fields: tuple[int, str, tuple]) -> Make:
    """-> a folder of three scans, of which the second has those fields, (place, format, values), in
    its header."""

    def make(inside: pathlib.Path) -> pathlib.Path:
        folder = inside / "folder"
        folder.mkdir()
        for sound in ("0", "2"):
            valid_files.nifti(folder / f"{sound}.nii")
        valid_files.nifti(folder / "1.nii")
        content = bytearray((folder / "1.nii").read_bytes())
        for place, format, values in fields.values():
            struct.pack_into(format, content, place, *values)
        (folder / "1.nii").unlink()
        packed = name.endswith(".gz")
        (folder / name).write_bytes(gzip.compress(content, mtime=0) if packed else content)
        return folder

    return make


def cut(make: Make, name: str, end: int) -> Make:
    def shorter(inside: pathlib.Path) -> pathlib.Path:
        folder = make(inside)
        (folder / name).write_bytes((folder / name).read_bytes()[:end])
        return folder

    return shorter


def longer(make: Make, name: str, end: int) -> Make:
    """With zeros up to there, which take no place on a disk."""

    def extended(inside: pathlib.Path) -> pathlib.Path:
        folder = make(inside)
        os.truncate(folder / name, end)
        return folder

    return extended


def series(**fields: Any) -> Make:
    """-> a folder of three series, of which the second has a slice with those fields."""

    def make(inside: pathlib.Path) -> pathlib.Path:
        folder = inside / "folder"
        for number in range(3):
            (folder / str(number)).mkdir(parents=True)
            changed = fields if number == 1 else {}
            valid_files.dicom(folder / str(number) / "a.dcm", PatientID=str(number), **changed)
        return folder

    return make


def scanned(scans: int) -> Make:
    """Whose second series is a JPEG of so many scans."""

    def make(inside: pathlib.Path) -> pathlib.Path:
        from pydicom.encaps import encapsulate

        packed = encapsulate([jpeg(512, 512, scans)])
        bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
        return series(
            syntax="JPEGBaseline8Bit", PixelData=packed, Rows=512, Columns=512, **bits
        )(inside)  # fmt: skip

    return make


def nifti(folder: pathlib.Path) -> Answer:
    return prepare(f"nifti_folder:{folder}", folder.parent, "4,4,4,1")


def dicom(folder: pathlib.Path) -> Answer:
    return prepare(f"dicom_folder:{folder}", folder.parent, "4,4,4,1")


def _scans() -> Iterator[Row]:
    # Voxels of a micrometre on a grid of metres.
    narrow = scan("1.nii", dim=(DIM + 2, "<3h", (8192, 16, 32)),
                  rows=(SROW, "<12f", (1e-3, 0, 0, 0, 0, 1e3, 0, 0, 0, 0, 1e3, 0)))  # fmt: skip
    cut_gzip = cut(scan("1.nii.gz"), "1.nii.gz", -9)
    for name, make, says in (
        ("of 32,767^3 voxels", scan("1.nii", dim=(DIM + 2, "<3h", (32767,) * 3)),
         "is of (32767, 32767, 32767) voxels; give it 1 to"),
        ("of fewer voxels than it says", scan("1.nii", dim=(DIM + 2, "<3h", (400, 400, 400))),
         "its header says 64,000,352 bytes"),
        ("of -1 rows", scan("1.nii", dim=(DIM + 2, "<3h", (-1, 4, 4))), "voxels; give it 1 to"),
        ("of 7 axes", scan("1.nii", dim=(DIM, "<8h", (7,) + (2,) * 7)), "a scan is one volume"),
        ("without spacing", scan("1.nii", rows=(SROW, "<12f", (float("nan"),) * 12)),
         "has no spacing"),
        ("of complex numbers", scan("1.nii", type=(DATATYPE, "<2h", (32, 64))),
         "a scan is of real numbers"),
        ("with voxels at byte 10^30", scan("1.nii", at=(OFFSET, "<f", (1e30,))),
         "has its voxels at byte 1e+30"),
        ("of 8 GiB of which it says nothing", longer(scan("1.nii"), "1.nii", 2**33),
         "1.nii has 8,589,934,592 bytes, more than"),
        ("of voxels as of a needle", longer(narrow, "1.nii", 352 + 2**22),
         "1.nii: a scan of (32, 16, 8192) voxels of [1000.0, 1000.0, 0.001] mm takes"),
        ("of no known type", scan("1.nii", type=(DATATYPE, "<2h", (9999, 8))), "1.nii"),
        ("that is cut, packed", cut_gzip, "1.nii.gz cannot be read"),
        ("that is no NIfTI", cut(scan("1.nii"), "1.nii", 99), "1.nii cannot be read"),
    ):  # fmt: skip
        yield row(f"NIfTI {name}", BAD_DATA, says, make, nifti)
    for name, make, says in (
        ("of 65,535 x 65,535", series(Rows=65535, Columns=65535), "of 65535 x 65535 pixels"),
        ("of a JPEG of 10^4 scans", scanned(10**4), "is a JPEG of more than 100 scans"),
        ("that is cut", cut(series(), "1/a.dcm", 700), "a.dcm cannot be decoded"),
        (
            "that is cut within its header",
            cut(series(), "1/a.dcm", 140),
            "is no slice of a scan: without",
        ),
        ("of 2^31 - 1 frames", series(NumberOfFrames=2**31 - 1), "of several frames"),
        ("without spacing", series(PixelSpacing=[0, 0]), "and not more than 0"),
        ("without a place", series(ImagePositionPatient=None), "without ImagePositionPatient"),
        ("of colours", series(SamplesPerPixel=3), "of colours"),
        ("that is deflated", deflated, "is deflated; write it in another transfer syntax"),
    ):
        yield row(f"DICOM {name}", BAD_DATA, says, make, dicom)


def deflated(inside: pathlib.Path) -> pathlib.Path:
    folder = series()(inside)
    path = folder / "1" / "a.dcm"
    content = path.read_bytes()
    # 1.2.840.10008.1.2.1 becomes 1.2.840.10008.1.2.1.99, and the group three bytes longer.
    old, new = b"UI\x14\x001.2.840.10008.1.2.1\0", b"UI\x16\x001.2.840.10008.1.2.1.99"
    (length,) = struct.unpack_from("<I", content, 140)
    content = content[:140] + struct.pack("<I", length + 2) + content[144:]
    path.write_bytes(content.replace(old, new, 1))
    return folder


def mesh(text: str | Callable[[], str]) -> Make:
    def make(inside: pathlib.Path) -> pathlib.Path:
        valid_files.obj(inside / "a.sh3f", text if isinstance(text, str) else text())
        return inside

    return make


def furniture(inside: pathlib.Path) -> Answer:
    return prepare("sweethome3d", inside, "8,8,8,1", {sweethome3d.ENVIRONMENT: str(inside)})


def _meshes() -> Iterator[Row]:
    corners = "v 0 0 0\nv 1 0 0\nv 0 1 0\n"
    long = "f " + "1 2 3 " * 2**21
    wide = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 1 1 1\n" + "f 1 2 3\nf 1 2 4\n" * 80_000
    for name, text, says in (
        ("of a corner that is not there", f"{corners}f 1 2 4\n", "faces of corners that it lacks"),
        ("of corner 2^70", f"{corners}f 1 2 {2**70}\n", "faces of corners that it lacks"),
        ("of a corner of NaN", "v nan 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "a mesh of extent nan"),
        ("of a corner at 1e308", "v 1e308 0 0\nv -1e308 0 0\nv 0 1 0\nf 1 2 3\n", "of extent inf"),
        ("of one point", "v 1 1 1\nf 1 1 1\n", "a mesh of extent 0"),
        ("of no face", corners, "has no faces"),
        ("of a word for a number", f"{corners}v 1 x 1\n", "line 4: 'v 1 x 1'"),
        (
            "of a face of 6 million corners",
            lambda: corners + long,
            "has more than 262,144 characters",
        ),
        ("of more than 64 MiB", lambda: corners + "f 1 2 3\n" * 2**23, "over 67,108,864"),
        ("of a surface without end", lambda: wide, "a surface of more than 33,554,432 points"),
    ):
        yield row(f"OBJ {name}", BAD_DATA, says, mesh(text), furniture)


def tar(*members: tuple[str, dict, bytes]) -> Make:
    """(name, fields of its header, content)."""

    def make(inside: pathlib.Path) -> pathlib.Path:
        with tarfile.open(inside / "a.tar.xz", "w:xz") as archive:
            for name, fields, content in members:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                for field, value in fields.items():
                    setattr(member, field, value)
                archive.fileobj.write(member.tobuf())  # type: ignore[union-attr]
                archive.fileobj.write(content + bytes(-len(content) % 512))  # type: ignore[union-attr]
        return inside / "a.tar.xz"

    return make


def strips(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Make:
    return archive(members, compression)


def of_variable(name: str, shape: str, variable: str) -> Callable[[pathlib.Path], Answer]:
    """Prepares a set that is read from a file, which a variable of the environment names."""
    return lambda path: prepare(name, path.parent, shape, {variable: str(path)})


def npz(**arrays: np.ndarray) -> Make:
    def make(inside: pathlib.Path) -> pathlib.Path:
        np.savez(inside / "a.npz", **arrays)
        return inside / "a.npz"

    return make


def packed_zeros(inside: pathlib.Path) -> pathlib.Path:
    with gzip.open(inside / "idx.gz", "wb", compresslevel=1) as file:
        for _ in range(129):
            file.write(bytes(2**20))
    return inside / "idx"


def index_file(inside: pathlib.Path) -> pathlib.Path:
    (inside / "idx").write_bytes(b"\0\0\x08\x03" + b"\x7f\xff\xff\xff" * 3 + bytes(24))
    return inside / "idx"


def _archives() -> Iterator[Row]:
    pictures = of_variable("cifar10", "32,32,3", cifar10.ENVIRONMENT)
    none, large = "no records for split train", "has 1,073,741,824 bytes"
    name = "train/cat/0.jpg"
    link = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
    digits = b"1" * 2**15
    sparse = {"type": tarfile.GNUTYPE_SPARSE}
    for what, make, says in (
        ("that names ../", tar(("../../train/cat/0.jpg", {}, b"x")), none),
        ("that names /", tar(("/train/cat/0.jpg", {}, b"x")), none),
        ("of links out of it", tar((name, link, b"")), none),
        ("of a member of 1 GiB", tar((name, {"size": 2**30}, b"")), large),
        ("of a name of 1 GiB", tar((name, {"size": 2**30, "type": tarfile.GNUTYPE_LONGNAME}, b"")),
         large),
        ("of a header of 2^15 digits", tar((name, {"type": tarfile.XHDTYPE}, digits)),
         "has 32,768 bytes; it may have 4,096"),
        ("of a member of -512 bytes", tar((name, {"size": -512}, b"")), "has -512 bytes"),
        ("of a member with holes", tar((name, sparse, b"")), "is sparse"),
        ("of no pictures", tar((name, {}, b"no picture")), f"{name}: cannot be decoded"),
    ):  # fmt: skip
        yield row(f"tar {what}", BAD_DATA, says, make, pictures)
    clips = of_variable("weizmann", "2,8,8,3", weizmann.ENVIRONMENT)
    for what, members, says in (
        ("that names ../", {"../../wave_one_hand/1.webp": b""}, "points out of the folder"),
        ("of no videos", {"wave_one_hand/1.webp": b"x"}, "1.webp: cannot be decoded"),
    ):
        yield row(f"zip of videos {what}", BAD_DATA, says, strips(members), clips)
    packed = strips({"wave_one_hand/1.webp": bytes(2**20)}, zipfile.ZIP_BZIP2)
    yield row("zip of videos packed by bzip2", BAD_DATA, "by neither of zip's usual ways", packed,
              clips)  # fmt: skip
    scans = of_variable("hippocampus", "8,12,8,1", hippocampus.ENVIRONMENT)
    volume = np.zeros((3, 4, 5), np.uint8)
    for what, make, says in (
        ("of Python's objects", npz(image_001=np.asarray([None, {}])), "allow_pickle=False"),
        ("without a mask", npz(image_001=volume), "mask_001"),
        ("of a mask of another size", npz(image_001=volume, mask_001=volume[1:]), "with a mask of"),
        ("of unknown classes", npz(image_001=volume, mask_001=volume + 9), "classes up to 9"),
        ("of one brightness", npz(image_001=volume, mask_001=volume), "in every voxel"),
    ):
        yield row(f".npz of scans {what}", BAD_DATA, says, make, scans)
    shapes = of_variable("modelnet", "8,8,8,1", modelnet.ENVIRONMENT)
    yield row(".npz of shapes of other sizes", BAD_DATA, "and not uint8 (n, 4096)",
              npz(chair=np.zeros((2, 5), np.uint8)), shapes)  # fmt: skip
    idx = reading(fashion_mnist.read_idx)
    yield row("gzip that unpacks to 129 MiB", BAD_DATA, "unpacks to more than 134,217,728",
              packed_zeros, idx)  # fmt: skip
    yield row("IDX of 2^93 pixels", BAD_DATA, "holds 24 bytes where its header says", index_file,
              idx)  # fmt: skip


def rows() -> Iterator[Row]:
    yield from _scans()
    yield from _meshes()
    yield from _archives()
