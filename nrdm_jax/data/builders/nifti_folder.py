"""Any folder of NIfTI scans: data.name=nifti_folder:PATH, with PATH/[CLASS/]NAME.nii[.gz].

A mask is NAME_seg.nii.gz beside its scan, or the file of the same name in a folder masks, beside
the scan or in PATH with the same path below. It is of the same voxels: of the same size and place
once both are turned to [z, y, x]; whole numbers from 0, the background, to 255. Subjects are those
of BIDS (sub-NAME in the path), or each scan is one.

Folders as of the Medical Segmentation Decathlon and nnU-Net are read, too: scans in images or
imagesTr, the masks of the same names in labels or labelsTr beside it, or without the _0000 that
says the channel. PATH/imagesTs is held out, if there is labelsTs, and else not read. See `scans`
for the rest.
"""

import dataclasses
import gzip
import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from nrdm_jax.bounded_archives import read_gzip
from nrdm_jax.bounded_files import BoundedFile
from nrdm_jax.data import folders, volumes
from nrdm_jax.data.builders import scans
from nrdm_jax.data.errors import DataError, named

SUFFIX = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
MASK = re.compile(r"_seg\.nii(\.gz)?$", re.IGNORECASE)
# Of scans, and of their masks, where both are side by side; the split, where they are in PATH.
LABELS = {"images": "labels", "imagesTr": "labelsTr", "imagesTs": "labelsTs"}
SPLITS = {"imagesTr": "train", "imagesTs": "test"}
CHANNEL = re.compile(r"_\d{4}$")
HEADER = 540  # bytes, of NIfTI-2
MOST_BEYOND = 2**24  # bytes of a file before its voxels, and after them
SUBJECT = re.compile(r"sub-[A-Za-z0-9]+")


class NiftiFolder(scans.ScanFolder, skip_registration=True):  # type: ignore[call-arg]
    __doc__ = scans.ScanFolder.__doc__

    NAME = "nifti_folder"

    @staticmethod
    def is_read(file: pathlib.Path) -> bool:
        """By its name."""
        return SUFFIX.search(file.name) is not None

    @staticmethod
    def find(folder: pathlib.Path) -> Iterator[scans.Scan]:
        """By their headers.

        Raises:
          ValueError: nibabel is absent.
          DataError: two scans would have one name.
        """
        scans.need("nibabel", NiftiFolder.NAME)
        files: dict[str, pathlib.Path] = {}
        for file in filter(NiftiFolder.is_read, folders.walk_files(folder)):
            key = key_of(file.relative_to(folder), folder)
            if key in files:
                raise DataError(f"{file} and {files[key]} have one name in the set; rename one")
            if key:
                files[key] = file
        for file, name, kind, heldout in scans.by_place(files):
            subject = SUBJECT.search(name)
            mask = mask_of(file, folder)
            # Channels of one subject have one mask.
            single = f"{kind}/{mask.name}" if mask and labels_of(file.parent) else name
            found = scans.Scan(name, subject[0] if subject else single, kind, heldout, (file,))
            try:
                size, spacing = header_of(file)
                yield dataclasses.replace(found, mask=mask, size=size, spacing=spacing)
            except DataError as error:
                yield dataclasses.replace(found, fault=str(error))

    @staticmethod
    def read(scan: scans.Scan) -> tuple[np.ndarray, np.ndarray | None]:
        """(D, H, W) intensities, and the classes of the mask.

        Raises:
          DataError: a file is damaged, or the mask is not of the scan's voxels, or no classes.
        """
        volume, affine = load(scan.files[0])
        if scan.mask is None:
            return volume, None
        classes, other = load(scan.mask)
        near = np.allclose(affine, other, atol=0.01 * min(scan.spacing))
        if classes.shape != volume.shape or not near:
            raise DataError(
                f"{scan.mask} is not of the voxels of {scan.files[0]}: {classes.shape} and "
                f"{volume.shape} voxels, from {np.round(other[:3, 3], 2).tolist()} and "
                f"{np.round(affine[:3, 3], 2).tolist()} mm on; resample it"
            )
        whole = np.rint(classes)
        if np.abs(classes - whole).max() > 1e-3 or whole.min() < 0 or whole.max() > 255:
            raise DataError(
                f"{scan.mask} has {classes.min():g} to {classes.max():g}; "
                "classes are whole numbers from 0 to 255"
            )
        return volume, whole.astype(np.uint8)


def key_of(path: pathlib.Path, folder: pathlib.Path) -> str:
    """What stands for the path of a scan in a folder; empty: the file is a mask, or not read."""
    place = path.parent

    def has_beside(name: str) -> bool:
        return (folder / place).with_name(name).is_dir()

    of_masks = any(place.name == labels and has_beside(name) for name, labels in LABELS.items())
    if MASK.search(path.name) or "masks" in place.parts or of_masks:
        return ""
    if place.name == "imagesTs" and has_beside("labelsTr") and not has_beside("labelsTs"):
        return ""
    if labels_of(folder / place):
        top = SPLITS.get(place.name, "") if len(place.parts) == 1 else ""
        return (place.parent / top / path.name).as_posix()
    return path.as_posix()


def labels_of(images: pathlib.Path) -> pathlib.Path | None:
    """The folder of the masks beside a folder of scans."""
    labels = images.with_name(LABELS[images.name]) if images.name in LABELS else None
    return labels if labels and labels.is_dir() else None


def mask_of(file: pathlib.Path, folder: pathlib.Path) -> pathlib.Path | None:
    stem = SUFFIX.sub("", file.name)
    labels = labels_of(file.parent)
    if labels:
        stems = (stem, CHANNEL.sub("", stem))
        places = [labels / f"{name}{suffix}" for name in stems for suffix in (".nii.gz", ".nii")]
        return next((place for place in places if place.exists()), None)
    places = [
        file.with_name(f"{stem}_seg{suffix}") for suffix in (".nii.gz", ".nii")
    ] + [
        directory / f"{stem}{suffix}"
        for directory in (file.parent / "masks", folder / "masks" / file.parent.relative_to(folder))
        for suffix in (".nii.gz", ".nii")
    ]  # fmt: skip
    return next((place for place in places if place.exists()), None)


def header_of(file: pathlib.Path) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Voxels along D, H, W, and their spacing in mm.

    Raises:
      DataError: it is no NIfTI file of one volume.
    """
    with named(str(file)):
        header = _header(_start(file), file)
        affine = _checked_affine(header.get_best_affine(), file)
        # Of no size in memory, whatever a damaged header says.
        empty, spacing = volumes.canonical(np.broadcast_to(False, _volume_of(header)), affine)
        return empty.shape, spacing


def load(file: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """(D, H, W) float32, scaled as the header says, and the affine (4, 4) of [x, y, z] to mm.

    Raises:
      DataError: it is no NIfTI file of one volume, or is damaged or cut short.
    """
    import nibabel

    with named(str(file)):
        image = nibabel.as_closest_canonical(_image(file))
        return np.asarray(image.dataobj, np.float32).T, image.affine


def _image(file: pathlib.Path) -> Any:
    """The image, of three dimensions. A compressed file is read to its end, where its checksum is:
    nibabel stops before, and takes what a damaged one holds for voxels."""
    import nibabel

    header = _header(_start(file), file)
    said = int(header["vox_offset"]) + _bytes_of(header)
    most, packed = said + MOST_BEYOND, _is_packed(file)
    with BoundedFile(file, None if packed else most) as stored:
        contents = read_gzip(stored, most) if packed else stored.read()
    if said > len(contents):
        held = f"and there are {len(contents):,}"
        raise DataError(f"{file} cannot be read: its header says {said:,} bytes, {held}")
    second = isinstance(header, nibabel.Nifti2Header)
    kind = nibabel.Nifti2Image if second else nibabel.Nifti1Image
    image: Any = kind.from_bytes(contents)
    _checked_affine(image.affine, file)
    return image.slicer[..., 0] if len(image.shape) == 4 else image


def _is_packed(file: pathlib.Path) -> bool:
    return file.name.lower().endswith(".gz")


def _start(file: pathlib.Path) -> bytes:
    """The first bytes of what a file holds, which are its header."""
    with BoundedFile(file) as stored:
        if not _is_packed(file):
            return stored.read(HEADER)
        with gzip.GzipFile(fileobj=stored) as unpacked:
            return unpacked.read(HEADER)


def _header(start: bytes, file: pathlib.Path) -> Any:
    """The header of one volume, of numbers, no larger than `volumes` takes. Neither voxels nor
    extensions are read: both are as large as it says.

    Raises:
      DataError: it is none.
    """
    import nibabel

    second = nibabel.Nifti2Header.may_contain_header(start)
    kind = nibabel.Nifti2Header if second else nibabel.Nifti1Header
    header = kind(start[: kind.template_dtype.itemsize])
    shape = header.get_data_shape()
    if len(shape) not in (3, 4) or tuple(shape[3:]) not in ((), (1,)):
        raise DataError(f"{file} is of {tuple(shape)}; a scan is one volume of three dimensions")
    volumes.check_size(_volume_of(header), str(file))
    if header.get_data_dtype().kind not in "iuf":
        raise DataError(f"{file} is of {header.get_data_dtype()}; a scan is of real numbers")
    if not 0 <= float(header["vox_offset"]) <= MOST_BEYOND:
        raise DataError(f"{file} has its voxels at byte {float(header['vox_offset']):g}")
    return header


def _volume_of(header: Any) -> tuple[int, ...]:
    return tuple(map(int, header.get_data_shape()[:3]))


def _bytes_of(header: Any) -> int:
    return math.prod(_volume_of(header)) * header.get_data_dtype().itemsize


def _checked_affine(affine: np.ndarray, file: pathlib.Path) -> np.ndarray:
    if not volumes.has_spacing(affine[:3, :3]):
        steps = np.round(affine[:3, :3], 3).tolist()
        raise DataError(f"{file} has no spacing: its affine is {steps}")
    return affine
