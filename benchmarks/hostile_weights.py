"""Hostile files of weights: pickles that call, archives that unpack to far more or to elsewhere,
headers that lie. Each is given to `nrdm encode` as an autoencoder's weights."""

import io
import json
import os
import pathlib
import struct
import zipfile
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks import valid_files
from benchmarks.fault_rows import Row
from benchmarks.hostile_reading import EXECUTED, USAGE, row, weights, written
from benchmarks.valid_files import text_opcode

Make = Callable[[pathlib.Path], pathlib.Path]


def pickled(content: bytes, *, archive: bool = True) -> Make:
    """A .pth of this pickle; CMD in it is a shell's command that would leave a trace."""

    def make(inside: pathlib.Path) -> pathlib.Path:
        path = inside / "a.pth"
        command = f"touch {inside.parent / EXECUTED}"
        whole = content.replace(b"CMD", text_opcode(command))
        (valid_files.torch_archive if archive else valid_files.torch_pickles)(path, whole)
        return path

    return make


def safetensors(header: dict | bytes, data: bytes = bytes(24), length: int | None = None) -> Make:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    return written("a.safetensors", struct.pack("<Q", size) + text + data)


def tensor(begin: int = 0, end: int = 24, shape: tuple = (6,), dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def npy(header: str, data: bytes = bytes(8)) -> Make:
    """An .npz of one array, whose header is this text."""
    text = header.encode() + b"\n"
    content = b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data
    return archive({"x.npy": content})


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Make:
    def make(inside: pathlib.Path) -> pathlib.Path:
        with zipfile.ZipFile(inside / "a.npz", "w", compression) as file:
            for name, content in members.items():
                file.writestr(zipfile.ZipInfo(name), content, compression)
        return inside / "a.npz"

    return make


def lying_archive(size: int) -> Make:
    """The directory says that a member unpacks to `size` bytes."""

    def make(inside: pathlib.Path) -> pathlib.Path:
        path = archive({"x.npy": bytes(1000)}, zipfile.ZIP_DEFLATED)(inside)
        content = bytearray(path.read_bytes())
        struct.pack_into("<I", content, content.index(b"PK\1\2") + 24, size)
        path.write_bytes(content)
        return path

    return make


def overlapping_archive(inside: pathlib.Path) -> pathlib.Path:
    """A directory of ten members, which are the same bytes."""
    path = archive({"x.npy": valid_array()})(inside)
    content = path.read_bytes()
    start, end = content.index(b"PK\1\2"), content.index(b"PK\5\6")
    tail = bytearray(content[end:])
    struct.pack_into("<HHI", tail, 8, 10, 10, 10 * (end - start))
    path.write_bytes(content[:start] + 10 * content[start:end] + tail)
    return path


def repeated_archive(inside: pathlib.Path) -> pathlib.Path:
    """Of two arrays of one name."""
    path = archive({"x.npy": valid_array(), "y.npy": valid_array()})(inside)
    path.write_bytes(path.read_bytes().replace(b"y.npy", b"x.npy"))
    return path


def encrypted_archive(inside: pathlib.Path) -> pathlib.Path:
    path = archive({"x.npy": valid_array()})(inside)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\3\4") + 6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    return path


def valid_array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(6))
    return file.getvalue()


def pipe(inside: pathlib.Path) -> pathlib.Path:
    os.mkfifo(inside / "a.safetensors")
    return inside / "a.safetensors"


def many_dicts(pairs: bytes) -> bytes:
    """A list of those pairs, of which 20 dicts are made."""
    calls = b"".join(b"ccollections\nOrderedDict\nh\0\x85R" for _ in range(20))
    return b"\x80\x02](" + pairs + b"eq\0(" + calls + b"t."


def pair_of(number: int) -> bytes:
    return b"\x8a\x10" + number.to_bytes(16, "little", signed=True) + b"N\x86"


def nested_key() -> bytes:
    """A state, and a list of keys of one: a tuple that is written in 5 bytes for each time that its
    text doubles."""
    tuples = b"".join(b"q%ch%c\x86" % (n, n) for n in range(20))
    return valid_files.pickled_state() + b"\x80\x02])" + tuples + b"a."


def shared_storage() -> bytes:
    """A state of 100 names of one tensor."""
    names = b"".join(text_opcode(f"w{n}") + b"h\1" for n in range(100))
    return valid_files.pickled_state().removesuffix(b"u.") + b"q\1" + names + b"u."


def _pickles() -> Iterator[Row]:
    ordered = b"ccollections\nOrderedDict\n)R("
    calls = {
        "os.system": (b"\x80\x02cposix\nsystem\nCMD\x85R.", "its pickle names posix.system"),
        "builtins.eval": (b"\x80\x02cbuiltins\neval\nCMD\x85R.", "its pickle names builtins.eval"),
        "getattr": (b"\x80\x02cbuiltins\ngetattr\nCMD\x85R.", "its pickle names builtins.getattr"),
        "subprocess by STACK_GLOBAL": (
            b"\x80\x04" + text_opcode("subprocess") + text_opcode("getoutput") + b"\x93CMD\x85R.",
            "its pickle names subprocess.getoutput",
        ),
        "os.system by INST": (b"\x80\x02(CMDiposix\nsystem\n.", "its pickle has the opcode INST"),
        "NEWOBJ": (b"\x80\x02ctorch\nSize\n)\x81.", "its pickle has the opcode NEWOBJ"),
        "torch.load": (b"\x80\x02ctorch\nload\nCMD\x85R.", "its pickle names torch.load"),
        "an attribute of a storage": (
            b"\x80\x02ctorch\nFloatStorage.from_file\nCMD\x85R.",
            "its pickle names torch.FloatStorage.from_file",
        ),
        "torch's own with other arguments": (
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nCMD\x85R.",
            "its pickle calls torch._utils._rebuild_tensor_v2 with other arguments",
        ),
    }
    for name, (content, says) in calls.items():
        yield row(f".pth whose pickle calls {name}", USAGE, says, pickled(content), weights)
    yield row("bare pickles that call os.system", USAGE, "its pickle names posix.system",
              pickled(b"\x80\x02cposix\nsystem\nCMD\x85R.", archive=False), weights)  # fmt: skip
    for what, pairs in (
        ("dicts without end", b"".join(map(pair_of, range(2**16)))),
        ("dicts of one pair, again and again", pair_of(0) + b"q\1" + b"h\1" * 2**16),
    ):
        yield row(f".pth of {what}", USAGE, "makes dicts of over 1,048,576 entries",
                  pickled(many_dicts(pairs)), weights)  # fmt: skip
    equal = many_dicts(b"".join(pair_of(n * (2**61 - 1)) for n in range(100)))
    yield row(".pth of keys of one hash", USAGE, "a key that is an int of over 60 bits",
              pickled(equal), weights)  # fmt: skip
    yield row("bare pickles whose storage is tuples in tuples", USAGE, "key is no text",
              pickled(nested_key(), archive=False), weights)  # fmt: skip
    for name, is_archive in ((".pth", True), ("bare pickles", False)):
        yield row(f"{name} of 101 tensors in one storage", USAGE,
                  "its tensors have 2,424 bytes, over 4 times the 24",
                  pickled(shared_storage(), archive=is_archive), weights)  # fmt: skip
    # Strides of 0, and a shape of 2^40 by 3.
    state = valid_files.pickled_state().replace(
        b"K\x02K\x03\x86K\x03K\x01\x86", b"\x8a\x06\0\0\0\0\0\1K\x03\x86K\0K\0\x86"
    )
    yield row(".pth of a tensor of 2^40 rows", USAGE, "reaches beyond its storage",
              pickled(state), weights)  # fmt: skip
    yield row(".pth whose pickle ends at once", USAGE, "is refused",
              pickled(ordered), weights)  # fmt: skip


def _safetensors() -> Iterator[Row]:
    twice = b'{"a": ' + json.dumps(tensor()).encode() + b', "a": {}}'
    deep = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    for name, make, says in (
        ("with a header of 2^60 bytes", safetensors({}, length=2**60), "its header is longer"),
        ("cut within its header", safetensors({"a": tensor()}, b"", length=300), "is longer than"),
        (
            "whose tensors overlap",
            safetensors({"a": tensor(), "b": tensor(4, 24, (5,))}),
            "the data of 'b' begin at 4, and those before them end at 24",
        ),
        ("with negative offsets", safetensors({"a": tensor(-24, 0)}), "is not a natural number"),
        (
            "of 2^64 elements",
            safetensors({"a": tensor(shape=(2**32, 2**32))}),
            "lies outside the file or has another size",
        ),
        ("with a name twice", safetensors(twice), "it has 'a' twice"),
        ("of an unknown type", safetensors({"a": tensor(dtype="F4")}), "is not understood"),
        ("nested without end", safetensors(deep), "is nested too deeply"),
        ("with bytes of no tensor", safetensors({"a": tensor()}, bytes(99)), "are of no tensor"),
    ):
        yield row(f".safetensors {name}", USAGE, says, make, weights)
    yield row("a pipe named .safetensors", USAGE, "is no regular file", pipe, weights)
    yield row("weights of an unknown suffix", USAGE, "a weight file ends in one of",
              written("a.ckpt", b""), weights)  # fmt: skip


def _archives() -> Iterator[Row]:
    call = '{"descr": "<f8", "fortran_order": False, "shape": (__import__("os").getpid(),), }'
    for name, make, says in (
        ("of Python's objects", npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"),
         "allow_pickle=False"),
        ("of 2^62 elements", npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2**62,), }"
                                 .replace("2**62", str(2**62))), "has 8 bytes"),
        ("whose header calls", npy(call), "has a damaged header"),
        ("that unpacks to 4 GB", lying_archive(2**32 - 2), "bytes unpack to 4,294,967,294"),
        ("whose members overlap", overlapping_archive, "is refused"),
        ("that has a name twice", repeated_archive, "it has the member 'x.npy' twice"),
        ("that names ../", archive({"../../x.npy": b""}), "points out of the folder"),
        ("that names /", archive({"/tmp/x.npy": b""}), "points out of the folder"),
        ("that names C:", archive({"C:\\x.npy": b""}), "points out of the folder"),
        ("that is encrypted", encrypted_archive, "is encrypted"),
        ("packed by LZMA", archive({"x.npy": valid_array()}, zipfile.ZIP_LZMA),
         "compressed by neither of zip's usual ways"),
    ):  # fmt: skip
        yield row(f".npz {name}", USAGE, says, make, weights)


def rows() -> Iterator[Row]:
    yield from _pickles()
    yield from _safetensors()
    yield from _archives()
