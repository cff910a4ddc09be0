"""Files of torch.save: dicts of tensors in a zip archive, or in the bare pickles before torch 1.6.

Their pickles are interpreted by `torch_pickles`. All sizes in a file are checked against the bytes
that are there before an array is made; the arrays are views of those bytes.
"""

import io
import math
import zipfile
from typing import Any, BinaryIO

import numpy as np

from nrdm_jax.bounded_archives import open_archive, read_member
from nrdm_jax.torch_pickles import Tensor, interpret

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # torch/serialization.py
_WRAPPERS = ("state_dict", "model")  # where a training checkpoint has its network
# Times the storages' bytes that the tensors may have together: weights that are tied are one
# storage under a few names.
_MOST_SHARED = 4


def read(contents: bytes) -> dict[str, np.ndarray]:
    """Name of a tensor -> its values, read-only, of a flat dict of tensors, alone or under
    `state_dict` or `model`.

    Raises:
      ValueError: it is inconsistent, or holds anything but tensors (the opcode or global is named).
      zipfile.BadZipFile, EOFError, MemoryError, RuntimeError: it is damaged.
    """
    if contents[:4] == b"PK\x03\x04":
        return _read_archive(open_archive(io.BytesIO(contents)))
    return _read_pickles(io.BytesIO(contents), len(contents))


def _read_archive(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """*/data.pkl, and the numbers of storage N in */data/N."""
    pickles = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise ValueError("the archive has no data.pkl: torch.save did not write it")
    root = pickles[0].removesuffix("data.pkl")

    def member_of(name: str) -> bytes:
        try:
            member = archive.getinfo(name)
        except KeyError as error:
            raise ValueError(f"the archive has no {name}") from error
        # torch stores its members as they are: compression could only hide their size.
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"the archive's member {name} is compressed")
        return read_member(archive, name)

    order = f"{root}byteorder"
    if order in archive.namelist() and member_of(order) != b"little":
        raise ValueError("its numbers are big-endian")
    state = _state_dict(interpret(io.BytesIO(member_of(pickles[0]))))
    keys = dict.fromkeys(tensor.storage.key for tensor in state.values())
    return _as_arrays(state, {key: member_of(f"{root}data/{key}") for key in keys})


def _read_pickles(file: BinaryIO, length: int) -> dict[str, np.ndarray]:
    """Before torch 1.6: pickles of a magic number, the protocol, the system, the object and the
    storages' keys; then of each storage its count of numbers (int64) and the numbers."""
    if interpret(file) != _MAGIC:
        raise ValueError("it does not start as a file of torch.save does")
    if interpret(file) != _PROTOCOL:
        raise ValueError("its protocol is not that of torch.save")
    system = interpret(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("its numbers are big-endian")
    sizes: dict[str, int] = {}
    state, keys = _state_dict(interpret(file, sizes)), interpret(file)
    if not isinstance(keys, list):
        raise ValueError("its storages have no list of keys")
    storages = {}
    for key in keys:
        if not isinstance(key, str):
            raise ValueError("a storage's key is no text")  # not formatted: it may be huge
        if key not in sizes:
            # The size of its numbers is not known, so neither is where the next storage starts.
            raise ValueError(f"no tensor is in its storage {key!r}")
        head = file.read(8)
        count = int.from_bytes(head, "little", signed=True)
        if len(head) < 8 or not 0 <= count * sizes[key] <= length - file.tell():
            raise ValueError(f"the file ends within storage {key!r}")
        storages[key] = file.read(count * sizes[key])
    return _as_arrays(state, storages)


def _state_dict(top: Any) -> dict[str, Tensor]:
    """The dict of tensors in what a torch file holds."""
    candidates = [top]
    if isinstance(top, dict):
        candidates += [top[key] for key in _WRAPPERS if key in top]
    for found in candidates:
        if isinstance(found, dict) and all(
            isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items()
        ):
            return found
    raise ValueError(
        "it holds no dict of tensors, alone or as 'state_dict' or 'model': "
        "save the network's state_dict()"
    )


def _as_arrays(state: dict[str, Tensor], storages: dict[str, bytes]) -> dict[str, np.ndarray]:
    arrays = {name: _as_array(name, tensor, storages) for name, tensor in state.items()}
    # The views are free, and what is made of them is not: of one storage there can be any number.
    asked, held = sum(a.nbytes for a in arrays.values()), sum(map(len, storages.values()))
    if asked > _MOST_SHARED * held:
        raise ValueError(
            f"its tensors have {asked:,} bytes, over {_MOST_SHARED} times the {held:,} of its "
            "storages"
        )
    return arrays


def _as_array(name: str, tensor: Tensor, storages: dict[str, bytes]) -> np.ndarray:
    storage = tensor.storage
    if storage.key not in storages:
        raise ValueError(f"the storage {storage.key!r} of {name!r} is missing")
    size, contents = storage.dtype.itemsize, storages[storage.key]
    if (storage.first + storage.count) * size > len(contents):
        raise ValueError(f"the storage of {name!r} is shorter than the file says")
    numbers = np.frombuffer(contents, storage.dtype, storage.count, storage.first * size)
    count = math.prod(tensor.shape)
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    # A stride of 0 would let a few bytes stand for any number of elements.
    if count > storage.count or (count and tensor.offset + last >= storage.count):
        raise ValueError(f"{name!r} of shape {tensor.shape} reaches beyond its storage")
    if not count:
        return np.zeros(tensor.shape, storage.dtype)
    return np.lib.stride_tricks.as_strided(
        numbers[tensor.offset :],
        tensor.shape,
        [stride * size for stride in tensor.strides],
        writeable=False,
    )
