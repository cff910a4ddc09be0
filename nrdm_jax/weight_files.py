"""Reads the weight files that published networks come in: .npz, .safetensors and torch's .pth.

Nothing in a file is executed; of torch's see `torch_pickles`. All sizes in a file are checked
against the bytes that are there before an array is made; the arrays are views of those bytes.
"""

import hashlib
import io
import math
import os
import pathlib
import zipfile
import zlib

import ml_dtypes
import numpy as np

from nrdm_jax import torch_files
from nrdm_jax.bounded_archives import read_npz
from nrdm_jax.bounded_files import parse_json, read_bytes

_SAFETENSORS_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_SAFETENSORS_LONGEST_HEADER = 100_000_000  # the format's own limit


def read_weights(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Name of a tensor -> its values, in the type that the file has, as read-only arrays.

    A torch file may be of either format: the zip archive of 1.6 and later, or the bare pickles
    before it. If what it holds is not a flat dict of tensors but has one under `state_dict` or
    `model`, that is taken.

    Raises:
      OSError: there is no such file, or it cannot be read.
      ValueError: the suffix is none of .npz, .safetensors, .pth and .pt; the file is truncated or
        inconsistent; it holds anything but tensors (the opcode or global is named).
    """
    path = pathlib.Path(path)
    readers = {
        ".npz": lambda contents: read_npz(io.BytesIO(contents)),
        ".safetensors": _read_safetensors,
        ".pth": torch_files.read,
        ".pt": torch_files.read,
    }
    if path.suffix not in readers:
        raise ValueError(f"{path}: a weight file ends in one of {', '.join(readers)}")
    # What the machine cannot hold would end the process, and no error be seen.
    contents = read_bytes(path, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        return readers[path.suffix](contents)
    except (
        ValueError,
        OverflowError,
        KeyError,
        RuntimeError,  # of an archive that is encrypted
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        MemoryError,
        NotImplementedError,  # a zip with a compression that Python does not know
        RecursionError,
    ) as error:
        raise ValueError(f"{path} is refused: {error or type(error).__name__}") from error


def fingerprint(path: str | os.PathLike) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _read_safetensors(contents: bytes) -> dict[str, np.ndarray]:
    """Eight bytes with the header's length, the header (JSON), the data
    (https://github.com/huggingface/safetensors#format)."""
    length = int.from_bytes(contents[:8], "little")
    if len(contents) < 8 or length > min(len(contents) - 8, _SAFETENSORS_LONGEST_HEADER):
        raise ValueError("its header is longer than the file")
    header = parse_json(contents[8 : 8 + length], unique=True)
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    start, arrays, places = 8 + length, {}, []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape = _SAFETENSORS_DTYPES[entry["dtype"]], tuple(entry["shape"])
            begin, end = entry["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the header's entry of {name!r} is not understood") from error
        numbers = (*shape, begin, end)
        if len(shape) > 32 or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
            raise ValueError(f"a size of {name!r} is not a natural number, or it has over 32 axes")
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if end - begin != size or start + end > len(contents):
            raise ValueError(f"the data of {name!r} lies outside the file or has another size")
        arrays[name] = np.frombuffer(contents, dtype, math.prod(shape), start + begin)
        arrays[name] = arrays[name].reshape(shape)
        places.append((begin, end, name))
    # The format has each byte in one tensor: no two share any, and none hides between them.
    last = 0
    for begin, end, name in sorted(places):
        if begin != last:
            raise ValueError(
                f"the data of {name!r} begin at {begin:,}, and those before them end at {last:,}"
            )
        last = end
    if start + last != len(contents):
        raise ValueError(f"{len(contents) - start - last:,} bytes are of no tensor")
    return arrays
