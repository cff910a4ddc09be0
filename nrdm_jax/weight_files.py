"""Reads the weight files that published networks come in: .npz, .safetensors and torch's .pth.

A torch file is a pickle, and a pickle can call anything. None is unpickled here: the opcodes that
a dict of tensors needs are interpreted one by one, over a list of the globals that it may name, and
the first opcode or global beyond them refuses the file. All sizes in a file are checked against the
bytes that are there before an array is made; the arrays are views of those bytes.
"""

import collections
import dataclasses
import hashlib
import io
import json
import math
import os
import pathlib
import pickletools
import zipfile
import zlib
from typing import Any, BinaryIO, NoReturn

import ml_dtypes
import numpy as np

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
_MOST_UNPACKED = 2**28  # bytes of any archive; a large one's are bounded by its own size
_SAFETENSORS_LONGEST_HEADER = 100_000_000  # the format's own limit

_STORAGES = {
    "torch.DoubleStorage": np.float64,
    "torch.FloatStorage": np.float32,
    "torch.HalfStorage": np.float16,
    "torch.BFloat16Storage": ml_dtypes.bfloat16,
    "torch.LongStorage": np.int64,
    "torch.IntStorage": np.int32,
    "torch.ShortStorage": np.int16,
    "torch.CharStorage": np.int8,
    "torch.ByteStorage": np.uint8,
    "torch.BoolStorage": np.bool_,
}
_CALLABLES = (
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor_v2",
)
_TORCH_MAGIC, _TORCH_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # torch/serialization.py
_WRAPPERS = ("state_dict", "model")  # where a training checkpoint has its network


def read_weights(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Name of a tensor -> its values, in the type that the file has, as read-only arrays.

    A torch file may be of either format: the zip archive of 1.6 and later, or the bare pickles
    before it. If what it holds is not a flat dict of tensors but has one under `state_dict` or
    `model`, that is taken.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the suffix is none of .npz, .safetensors, .pth and .pt; the file is truncated or
        inconsistent; it holds anything but tensors (the opcode or global is named).
    """
    path = pathlib.Path(path)
    readers = {
        ".npz": _read_npz,
        ".safetensors": _read_safetensors,
        ".pth": _read_torch,
        ".pt": _read_torch,
    }
    if path.suffix not in readers:
        raise ValueError(f"{path}: a weight file ends in one of {', '.join(readers)}")
    contents = path.read_bytes()
    try:
        return readers[path.suffix](contents)
    except (
        ValueError,
        OverflowError,
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


def _open_archive(contents: bytes) -> zipfile.ZipFile:
    archive = zipfile.ZipFile(io.BytesIO(contents))
    # Zeros compress to a thousandth: what is unpacked is bounded before it is.
    unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > max(_MOST_UNPACKED, 16 * len(contents)):
        raise ValueError(f"its {len(contents)} bytes unpack to {unpacked}")
    for name in archive.namelist():
        parts = name.replace("\\", "/").split("/")
        if parts[0] == "" or ".." in parts or ":" in parts[0]:
            raise ValueError(f"the archive's member {name!r} points out of it")
    return archive


def _read_npz(contents: bytes) -> dict[str, np.ndarray]:
    _open_archive(contents)
    with np.load(io.BytesIO(contents), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _read_safetensors(contents: bytes) -> dict[str, np.ndarray]:
    """Eight bytes with the header's length, the header (JSON), the data
    (https://github.com/huggingface/safetensors#format)."""
    length = int.from_bytes(contents[:8], "little")
    if len(contents) < 8 or length > min(len(contents) - 8, _SAFETENSORS_LONGEST_HEADER):
        raise ValueError("its header is longer than the file")
    header = json.loads(contents[8 : 8 + length])
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    start, arrays = 8 + length, {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape = _SAFETENSORS_DTYPES[entry["dtype"]], tuple(entry["shape"])
            begin, end = entry["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the header's entry of {name!r} is not understood") from error
        if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
            raise ValueError(f"a size of {name!r} is not a natural number")
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if end - begin != size or start + end > len(contents):
            raise ValueError(f"the data of {name!r} lies outside the file or has another size")
        arrays[name] = np.frombuffer(contents, dtype, math.prod(shape), start + begin)
        arrays[name] = arrays[name].reshape(shape)
    return arrays


@dataclasses.dataclass(frozen=True)
class _Global:
    """Something that a pickle names, before it is called or referred to."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A run of numbers in the file: `count` of them from `first` on in the storage `key`."""

    key: str
    dtype: np.dtype
    first: int
    count: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage, in elements; the storage's bytes are read later."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Mark:
    pass


def _read_torch(contents: bytes) -> dict[str, np.ndarray]:
    if contents[:4] == b"PK\x03\x04":
        return _read_torch_archive(_open_archive(contents))
    return _read_torch_pickles(io.BytesIO(contents), len(contents))


def _read_torch_archive(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """*/data.pkl, and the numbers of storage N in */data/N."""
    pickles = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise ValueError("the archive has no data.pkl: torch.save did not write it")
    root = pickles[0].removesuffix("data.pkl")

    def read_member(name: str) -> bytes:
        try:
            member = archive.getinfo(name)
        except KeyError as error:
            raise ValueError(f"the archive has no {name}") from error
        # torch stores its members as they are: compression could only hide their size.
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"the archive's member {name} is compressed")
        return archive.read(member)

    order = f"{root}byteorder"
    if order in archive.namelist() and read_member(order) != b"little":
        raise ValueError("its numbers are big-endian")
    state = _state_dict(_interpret(io.BytesIO(read_member(pickles[0]))))
    keys = dict.fromkeys(tensor.storage.key for tensor in state.values())
    storages = {key: read_member(f"{root}data/{key}") for key in keys}
    return {name: _as_array(name, tensor, storages) for name, tensor in state.items()}


def _read_torch_pickles(file: BinaryIO, length: int) -> dict[str, np.ndarray]:
    """Before torch 1.6: pickles of a magic number, the protocol, the system, the object and the
    storages' keys; then of each storage its count of numbers (int64) and the numbers."""
    if _interpret(file) != _TORCH_MAGIC:
        raise ValueError("it does not start as a file of torch.save does")
    if _interpret(file) != _TORCH_PROTOCOL:
        raise ValueError("its protocol is not that of torch.save")
    system = _interpret(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("its numbers are big-endian")
    sizes: dict[str, int] = {}
    state, keys = _state_dict(_interpret(file, sizes)), _interpret(file)
    if not isinstance(keys, list):
        raise ValueError("its storages have no list of keys")
    storages = {}
    for key in keys:
        if not isinstance(key, str) or key not in sizes:
            # The size of its numbers is not known, so neither is where the next storage starts.
            raise ValueError(f"no tensor is in its storage {key!r}")
        head = file.read(8)
        count = int.from_bytes(head, "little", signed=True)
        if len(head) < 8 or not 0 <= count * sizes[key] <= length - file.tell():
            raise ValueError(f"the file ends within storage {key!r}")
        storages[key] = file.read(count * sizes[key])
    return {name: _as_array(name, tensor, storages) for name, tensor in state.items()}


def _state_dict(top: Any) -> dict[str, _Tensor]:
    """The dict of tensors in what a torch file holds."""
    candidates = [top]
    if isinstance(top, dict):
        candidates += [top[key] for key in _WRAPPERS if key in top]
    for found in candidates:
        if isinstance(found, dict) and all(
            isinstance(key, str) and isinstance(value, _Tensor) for key, value in found.items()
        ):
            return found
    raise ValueError(
        "it holds no dict of tensors, alone or as 'state_dict' or 'model': "
        "save the network's state_dict()"
    )


def _as_array(name: str, tensor: _Tensor, storages: dict[str, bytes]) -> np.ndarray:
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


def _interpret(file: BinaryIO, sizes: dict[str, int] | None = None) -> Any:
    """The object of the pickle at the file's position, which is left behind it.

    Dicts, lists, tuples, strings, numbers, `_Tensor` and `_Global`: nothing is imported or called.
    Bytes of a number of each storage that it mentions are added to `sizes`, by the storage's key.
    """
    sizes = {} if sizes is None else sizes
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def pop() -> Any:
        if not stack or isinstance(stack[-1], _Mark):
            raise ValueError("its pickle takes more than it has put down")
        return stack.pop()

    def pop_to_mark() -> list[Any]:
        items: list[Any] = []
        while stack and not isinstance(stack[-1], _Mark):
            items.append(stack.pop())
        if not stack:
            raise ValueError("its pickle has no mark where it needs one")
        stack.pop()
        return items[::-1]

    def recall(index: Any) -> Any:
        if index not in memo:
            raise ValueError("its pickle refers to what it has not made")
        return memo[index]

    def grow(kind: type) -> Any:
        if not stack or not isinstance(stack[-1], kind):
            raise ValueError(f"its pickle adds to what is no {kind.__name__}")
        return stack[-1]

    def set_items(items: list[Any]) -> None:
        table = grow(dict)
        if len(items) % 2:
            raise ValueError("its pickle has a key without a value")
        table.update(zip(map(_checked_key, items[::2]), items[1::2], strict=True))

    for opcode, argument, _ in pickletools.genops(file):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                found = pop()
                if stack:
                    raise ValueError("its pickle ends with more than one object")
                return found
            case "MARK":
                stack.append(_Mark())
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case (
                "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE"
                | "SHORT_BINUNICODE" | "BINUNICODE8" | "BINSTRING" | "SHORT_BINSTRING"
            ):  # fmt: skip
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple([pop() for _ in range(int(opcode.name[-1]))][::-1]))
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                memo[len(memo) if argument is None else argument] = found = pop()
                stack.append(found)
            case "BINGET" | "LONG_BINGET":
                stack.append(recall(argument))
            case "APPEND":
                item = pop()
                grow(list).append(item)
            case "APPENDS":
                items = pop_to_mark()
                grow(list).extend(items)
            case "SETITEM":
                value, key = pop(), pop()
                set_items([key, value])
            case "SETITEMS":
                set_items(pop_to_mark())
            case "GLOBAL":
                stack.append(_allowed(str(argument).replace(" ", ".")))
            case "STACK_GLOBAL":
                name, module = pop(), pop()
                if not (isinstance(name, str) and isinstance(module, str)):
                    raise ValueError("a global has no name")  # not formatted: it may be huge
                stack.append(_allowed(f"{module}.{name}"))
            case "BINPERSID":
                storage = _storage(pop())
                if sizes.setdefault(storage.key, storage.dtype.itemsize) != storage.dtype.itemsize:
                    raise ValueError(f"its storage {storage.key!r} has numbers of two sizes")
                stack.append(storage)
            case "REDUCE":
                arguments, function = pop(), pop()
                stack.append(_call(function, arguments))
            case "BUILD":
                pop()  # the attribute _metadata of a state dict: versions of its modules
                grow(dict)
            case _:
                _refuse(f"its pickle has the opcode {opcode.name}")
    raise ValueError("its pickle does not end")


def _refuse(what: str) -> NoReturn:
    raise ValueError(f"{what}, which no dict of tensors needs: save the network's state_dict()")


def _allowed(name: str) -> _Global:
    if name not in _CALLABLES and name not in _STORAGES:
        _refuse(f"its pickle names {name}")
    return _Global(name)


def _checked_key(key: Any) -> str | int:
    # Only these: the hash of nested tuples can take for ever.
    if not isinstance(key, str | int):
        _refuse(f"its pickle has a key that is a {type(key).__name__}")
    return key


def _naturals(*values: Any) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _storage(identity: Any) -> _Storage:
    """Of torch's persistent identity ("storage", type, key, place, count[, view])."""
    match identity:
        case ("storage", _Global(name), str(key), str(), int(count), *view) if name in _STORAGES:
            first = 0
            if view and view[0] is not None:
                match view[0]:  # in a part of another storage, which is the one in the file
                    case (str(), int(first), int(count)):
                        pass
                    case _:
                        _refuse("its pickle has a malformed view of a storage")
            if len(view) < 2 and _naturals(first, count):
                return _Storage(key, np.dtype(_STORAGES[name]), first, count)
    _refuse("its pickle has a persistent identity that is no storage")


def _call(function: Any, arguments: Any) -> Any:
    """What a call would have made, for the few that a dict of tensors needs."""
    match function, arguments:
        case _Global("collections.OrderedDict"), ():
            return collections.OrderedDict()
        case _Global("collections.OrderedDict"), ([*pairs],):
            if all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
                return collections.OrderedDict((_checked_key(k), v) for k, v in pairs)
        case _Global("torch.Size"), (tuple(shape),):
            return shape
        case _Global("torch._utils._rebuild_parameter"), (_Tensor() as tensor, *_):
            return tensor
        case (
            _Global("torch._utils._rebuild_tensor_v2"),
            (_Storage() as storage, int(offset), tuple(shape), tuple(strides), *_),
        ):
            if not _naturals(offset, *shape, *strides) or len(shape) != len(strides):
                raise ValueError("a tensor's shape, strides or offset is no natural number")
            if len(shape) > 32:
                raise ValueError("a tensor has more than 32 axes")
            return _Tensor(storage, offset, shape, strides)
    name = function.name if isinstance(function, _Global) else type(function).__name__
    _refuse(f"its pickle calls {name} with other arguments than torch.save does")
