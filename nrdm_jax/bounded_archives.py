"""Zip archives, numpy's .npz and gzip's files that others wrote, read within bounds.

What an archive unpacks to is bounded before it is unpacked, a member gives no more than its entry
says, and an array is as large as its bytes are. Nothing is written to disk, and no pickle is read.
"""

import collections
import gzip
import io
import math
import os
import zipfile
from typing import BinaryIO

import numpy as np

from nrdm_jax.bounded_files import check_name

MOST_UNPACKED = 2**28  # bytes of any archive; a large one's are bounded by its own size
MOST_TIMES = 16  # its own size: of numbers that compress well
MOST_MEMBERS = 2**17
# Python bounds what these give at a time, and not what bzip2 and LZMA do, of 10^4 times and more.
KNOWN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
NUMBERS = "biufcV"  # kinds of numpy's types: V is bfloat16, whose name its files lack


def open_archive(source: str | os.PathLike | BinaryIO) -> zipfile.ZipFile:
    """Raises:
    zipfile.BadZipFile, OSError: it is none, or cannot be opened.
    ValueError: it unpacks to far more than it is, or a member's name points out of it.
    """
    if not isinstance(source, str | os.PathLike):
        return _checked(zipfile.ZipFile(source))
    if os.path.exists(source) and not os.path.isfile(source):
        raise ValueError(f"{source} is no file")  # opening a pipe would wait
    return _checked(zipfile.ZipFile(source))


def _checked(archive: zipfile.ZipFile) -> zipfile.ZipFile:
    try:
        members = archive.infolist()
        held = sum(member.compress_size for member in members)
        unpacked = sum(member.file_size for member in members)
        assert archive.fp is not None
        size = archive.fp.seek(0, io.SEEK_END)
        # Zeros compress to a thousandth: what is unpacked is bounded before it is.
        if unpacked > max(MOST_UNPACKED, MOST_TIMES * size):
            raise ValueError(f"its {size:,} bytes unpack to {unpacked:,}")
        if held > size:
            raise ValueError(f"its members have {held:,} bytes, and it has {size:,}: they overlap")
        if len(members) > MOST_MEMBERS:
            raise ValueError(f"it has {len(members):,} members, more than {MOST_MEMBERS:,}")
        if len(archive.NameToInfo) < len(members):
            # Python gives the last for each, which would be unpacked as often as it is named.
            (twice, _), *_ = collections.Counter(archive.namelist()).most_common(1)
            raise ValueError(f"it has the member {twice[:200]!r} twice")
        for member in members:
            try:
                check_name(member.filename)
            except ValueError as error:
                raise ValueError(f"the archive's member: {error}") from error
    except ValueError:
        archive.close()
        raise
    return archive


def read_member(archive: zipfile.ZipFile, name: str, most: int | None = None) -> bytes:
    """A member as a whole.

    Raises:
      KeyError: there is none of this name.
      ValueError: it has more than `most` bytes, or is compressed in a way that cannot be bounded.
      zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError: it is damaged or
        encrypted.
    """
    member = archive.getinfo(name)
    if member.compress_type not in KNOWN:
        raise ValueError(
            f"the archive's member {name} is compressed by neither of zip's usual ways"
        )
    if most is not None and member.file_size > most:
        raise ValueError(
            f"the archive's member {name} has {member.file_size:,} bytes, over {most:,}"
        )
    with archive.open(member) as file:
        # By this size, and not to its end: only what is asked for is then unpacked.
        contents = file.read(member.file_size)
    if len(contents) != member.file_size:
        raise ValueError(f"the archive's member {name} is cut short")
    return contents


def array_of(contents: bytes) -> np.ndarray:
    """The array of an .npy file (numpy.lib.format, versions 1 and 2), a read-only view of it.

    Raises:
      ValueError: it is none, is not of numbers, or its bytes are not as many as its header says.
    """
    file = io.BytesIO(contents)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        shape, by_columns, dtype = readers[np.lib.format.read_magic(file)](file)
    except KeyError as error:
        raise ValueError(f"an array is of the format {error}, which is none of numbers") from error
    except Exception as error:  # Python's own parser reads the header, and has errors of its own
        raise ValueError(f"an array has a damaged header: {error}") from error
    if dtype.hasobject or dtype.kind not in NUMBERS or dtype.names or dtype.subdtype:
        raise ValueError(f"an array is of {dtype}, which allow_pickle=False and numbers exclude")
    start, size = file.tell(), math.prod(shape) * dtype.itemsize
    if any(type(axis) is not int or axis < 0 for axis in shape) or len(shape) > 32:
        raise ValueError(f"an array has the shape {shape}")
    if size != len(contents) - start:
        raise ValueError(f"an array of {shape} and {dtype} has {len(contents) - start:,} bytes")
    if not size:
        return np.zeros(shape, dtype)
    numbers = np.frombuffer(contents, dtype, offset=start)
    return numbers.reshape(shape, order="F" if by_columns else "C")


def array_names(archive: zipfile.ZipFile) -> list[str]:
    """Of the arrays in an .npz."""
    return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of an .npz. Raises: as `read_member` and `array_of`, naming the array."""
    contents = read_member(archive, f"{name}.npy")
    try:
        return array_of(contents)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def read_npz(source: str | os.PathLike | BinaryIO) -> dict[str, np.ndarray]:
    """All arrays of an .npz by name, read-only. Raises: as `open_archive` and `read_array`."""
    with open_archive(source) as archive:
        return {name: read_array(archive, name) for name in array_names(archive)}


def read_gzip(file: BinaryIO, most: int) -> bytes:
    """What a file of gzip unpacks to, to its end, where its checksum is.

    Raises:
      ValueError: it is more than `most` bytes.
      gzip.BadGzipFile, zlib.error, EOFError: it is damaged.
    """
    with gzip.GzipFile(fileobj=file) as unpacked:
        contents = unpacked.read(most)
        if len(contents) == most and unpacked.read(1):
            raise ValueError(f"it unpacks to more than {most:,} bytes")
        return contents
