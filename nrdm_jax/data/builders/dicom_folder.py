"""Any folder of DICOM series: data.name=dicom_folder:PATH, with PATH/[CLASS/]SERIES/ of slices.

A folder of slices is one series; its slices are in order of their places along what they are
normal to (Image Position and Orientation, DICOM PS3.3 C.7.6.2.1.1), whatever the files' names and
numbers. Intensities are the stored ones times the slope, plus the intercept: for CT Hounsfield
units. Subjects are by Patient ID. See `scans` for the rest.
"""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from nrdm_jax.bounded_files import BoundedFile
from nrdm_jax.data import folders, jpeg_scans, volumes
from nrdm_jax.data.builders import scans
from nrdm_jax.data.errors import DataError, is_of_machine, named

TOLERANCE = 0.1  # of the spacing of slices, by which a gap may differ from it
# What slices of one series share.
ONE_EACH = ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient", "SeriesInstanceUID")
# How many numbers these are.
COUNTS = {
    "Rows": 1, "Columns": 1, "PixelSpacing": 2, "ImageOrientationPatient": 6,
    "ImagePositionPatient": 3,
}  # fmt: skip
READ_LATER = (
    "PatientID", "SliceThickness", "RescaleSlope", "RescaleIntercept", "PhotometricInterpretation",
)  # fmt: skip
MOST_BYTES, MOST_PIXELS = 2**31, 2**26  # of a slice
POSITIVE = ("Rows", "Columns", "PixelSpacing")


class DicomFolder(scans.ScanFolder, skip_registration=True):  # type: ignore[call-arg]
    __doc__ = scans.ScanFolder.__doc__

    NAME = "dicom_folder"

    @staticmethod
    def is_read(file: pathlib.Path) -> bool:
        """See `is_slice`."""
        return is_slice(file)

    @staticmethod
    def find(folder: pathlib.Path) -> Iterator[scans.Scan]:
        """By their headers.

        Raises:
          ValueError: pydicom or nibabel is absent.
        """
        for package in ("pydicom", "nibabel"):
            scans.need(package, DicomFolder.NAME)
        series: dict[str, list[pathlib.Path]] = {}
        for file in filter(is_slice, folders.walk_files(folder)):
            series.setdefault(file.parent.relative_to(folder).as_posix(), []).append(file)
        for files, name, kind, heldout in scans.by_place(series):
            found = scans.Scan(name, name, kind, heldout, tuple(files))
            try:
                headers = slices(found.files, pixels=False)
                size = (int(headers[0].Columns), int(headers[0].Rows), len(headers))
                volumes.check_size(size, str(files[0].parent))
                turned, spacing = volumes.canonical(
                    np.broadcast_to(False, size), affine_of(headers)
                )
                yield dataclasses.replace(
                    found,
                    subject=str(headers[0].get("PatientID") or name),
                    size=turned.shape,
                    spacing=spacing,
                )
            except DataError as error:
                yield dataclasses.replace(found, fault=str(error))

    @staticmethod
    def read(scan: scans.Scan) -> tuple[np.ndarray, None]:
        """(D, H, W) intensities. Raises as `slices` and `intensities`."""
        found = slices(scan.files, pixels=True)
        stack = np.stack([intensities(part) for part in found], axis=-1)
        return volumes.canonical(stack.transpose(1, 0, 2), affine_of(found))[0], None


def is_slice(file: pathlib.Path) -> bool:
    """Files NAME.dcm, and those without a suffix that begin as DICOM does, as scanners write
    them; not DICOMDIR, a list of others."""
    if file.name == "DICOMDIR" or not file.is_file():
        return False
    if file.suffix.lower() == ".dcm":
        return True
    if file.suffix and not file.suffix[1:].isdigit():  # UIDs have points
        return False
    with file.open("rb") as start:
        return start.read(132)[128:] == b"DICM"


def slices(files: tuple[pathlib.Path, ...], *, pixels: bool) -> list[Any]:
    """The slices of one series, from the first to the last along their normal.

    Raises:
      DataError: a file is none, or is no slice of a place and an orientation in space; they are of
        several series, sizes or orientations; two are of one place, or one is missing.
    """
    found: list[tuple[pathlib.Path, Any]] = []
    for file in files:
        with named(str(file)):
            part = read_slice(file, pixels=pixels)
        with named(str(file), " is no slice of a scan"):
            fault = fault_of(part)
        if fault:
            raise DataError(f"{file} is no slice of a scan: {fault}")
        for name in ONE_EACH:
            if found and not _alike(part[name].value, found[0][1][name].value):
                raise DataError(
                    f"{file} has {name} {part[name].value}, and {found[0][0]} "
                    f"{found[0][1][name].value}; a folder is one series"
                )
        found.append((file, part))
    normal = np.cross(*np.asarray(found[0][1].ImageOrientationPatient, float).reshape(2, 3))
    height = [float(np.dot(normal, np.asarray(p.ImagePositionPatient, float))) for _, p in found]
    order = np.argsort(height, kind="stable")
    gaps = np.diff(np.asarray(height)[order])
    usual = float(np.median(gaps)) if len(gaps) else 1.0
    for gap, last, following in zip(gaps, order, order[1:], strict=False):
        if gap <= 1e-3 or abs(gap - usual) > TOLERANCE * usual:
            raise DataError(
                f"{found[following][0]} is {gap:g} mm from {found[last][0]}, of slices {usual:g} "
                "mm apart; a series is of one place each, and none is missing"
            )
    return [found[i][1] for i in order]


def read_slice(file: pathlib.Path, *, pixels: bool) -> Any:
    """Raises:
    DataError: it is deflated: pydicom would unpack whatever there is of it.
    OSError, ValueError, …: as pydicom does.
    """
    import pydicom
    from pydicom.filereader import read_dataset, read_preamble

    with BoundedFile(file, MOST_BYTES) as stored:
        read_preamble(stored, force=False)
        meta = read_dataset(stored, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
        if meta.get("TransferSyntaxUID") == pydicom.uid.DeflatedExplicitVRLittleEndian:
            raise DataError(f"{file} is deflated; write it in another transfer syntax")
        stored.seek(0)
        part = pydicom.dcmread(stored, stop_before_pixels=not pixels)
    part.filename = str(file)
    return part


def fault_of(part: Any) -> str:
    """Why it cannot be a slice, or empty.

    Raises:
      TypeError, ValueError, …: what has to be a number is none, or as pydicom does.
    """
    for name in READ_LATER:  # pydicom makes values of the bytes when they are asked for
        part.get(name)
    # DICOM writes what is not known as a value of no length (PS3.5 7.4).
    values = {name: part.get(name) for name in (*ONE_EACH, "ImagePositionPatient")}
    absent = [name for name, value in values.items() if value is None or value in ("", [])]
    if absent:
        return f"without {', '.join(absent)}"
    if int(part.get("NumberOfFrames") or 1) > 1:
        return "of several frames"
    if int(part.get("SamplesPerPixel") or 1) > 1:
        return "of colours"
    # Of what is compressed, these alone say how much memory is taken.
    if int(part.Rows) * int(part.Columns) > MOST_PIXELS:
        return f"of {part.Rows} x {part.Columns} pixels"
    for name, count in COUNTS.items():
        numbers = np.atleast_1d(np.asarray(values[name], float))
        if numbers.shape != (count,) or not np.isfinite(numbers).all():
            return f"{name} is {values[name]}, and not {count} finite numbers"
        if name in POSITIVE and min(numbers) <= 0:
            return f"{name} is {values[name]}, and not more than 0"
    return ""


def _alike(a: Any, b: Any) -> bool:
    """Equal, or numbers that differ by how they were written."""
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    return bool(np.allclose(np.asarray(a, float), np.asarray(b, float), atol=1e-4))


def affine_of(series: list[Any]) -> np.ndarray:
    """(4, 4), of [column, row, slice] to mm, x to the right and y to the front; DICOM has them to
    the left and to the back (PS3.3 equation C.7.6.2.1-1).

    Raises:
      DataError: the slices have no place in space.
    """
    first, last = series[0], series[-1]
    along_row, down = np.asarray(first.ImageOrientationPatient, float).reshape(2, 3)
    between_rows, between_columns = map(float, first.PixelSpacing)
    start, end = (np.asarray(part.ImagePositionPatient, float) for part in (first, last))
    if len(series) > 1:
        step = (end - start) / (len(series) - 1)
    else:
        step = np.cross(along_row, down) * _thickness(first)
    affine = np.eye(4)
    affine[:3] = np.stack([along_row * between_columns, down * between_rows, step, start], axis=1)
    if not volumes.has_spacing(affine[:3, :3]):
        raise DataError(
            f"{first.filename} has no spacing: its axes are {np.round(affine[:3, :3], 3).tolist()}"
        )
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _thickness(part: Any) -> float:
    """Of a lone slice, mm; 1 where it does not say."""
    try:
        return float(part.get("SliceThickness") or 1.0)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{part.filename} has a SliceThickness that is no number: {error}"
        ) from error


def _check_scans(part: Any) -> None:
    """Raises:
    DataError: it is a JPEG of too many scans.
    """
    from pydicom.encaps import generate_frames

    if part.file_meta.TransferSyntaxUID.is_encapsulated:
        for frame in generate_frames(part.PixelData, number_of_frames=1):
            if frame.startswith(jpeg_scans.BEGINNING):
                jpeg_scans.check(frame)


def intensities(part: Any) -> np.ndarray:
    """(rows, columns) float32, bright where there is more of what is measured.

    Raises:
      DataError: the pixels cannot be decoded, or are colours.
    """
    try:
        _check_scans(part)
        stored = part.pixel_array.astype(np.float32)
        slope, intercept = (
            float(part.get(name) or usual)
            for name, usual in (("RescaleSlope", 1), ("RescaleIntercept", 0))
        )
    except Exception as error:  # of as many kinds as there are codecs
        if is_of_machine(error):
            raise
        raise DataError(
            f"{part.filename} cannot be decoded: {error}; decompress it, or install pylibjpeg"
        ) from error
    if stored.ndim != 2:
        raise DataError(f"{part.filename} is of {stored.shape}; a slice has one channel")
    scaled = stored * slope + intercept
    return -scaled if part.get("PhotometricInterpretation") == "MONOCHROME1" else scaled
