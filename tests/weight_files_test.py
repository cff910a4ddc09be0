"""Weight files are read as torch, numpy and safetensors write them, and nothing in them runs."""

import collections
import io
import json
import pickle
import sys
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest

from nrdm_jax import weight_files

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
SYSTEM = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"long": 4}}
STORAGES = {"FloatStorage": np.float32, "LongStorage": np.int64, "BFloat16Storage": "V2"}


class Storage:
    """What torch's pickler writes as a persistent identity."""

    def __init__(self, key, numbers, kind="FloatStorage", view=()):
        self.key, self.numbers, self.kind, self.view = key, numbers, kind, view


class Tensor:
    def __init__(self, storage, offset, shape, strides):
        self.parts = storage, offset, shape, strides

    def __reduce__(self):
        arguments = (*self.parts, False, collections.OrderedDict())
        return sys.modules["torch._utils"]._rebuild_tensor_v2, arguments


def whole(key, array, kind="FloatStorage"):
    strides = tuple(n // array.itemsize for n in array.strides)
    return Tensor(Storage(key, array.reshape(-1), kind), 0, array.shape, strides)


@pytest.fixture(autouse=True)
def torch_names(monkeypatch):
    """Stand-ins, so that the streams name torch's globals without torch."""

    def named(module, name, kind):
        made = type(name, (), {}) if kind is type else (lambda *_: None)
        made.__module__, made.__name__, made.__qualname__ = module, name, name
        return made

    torch, parts = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in STORAGES:
        setattr(torch, name, named("torch", name, type))
    for name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
        setattr(parts, name, named("torch._utils", name, None))
    torch._utils = parts
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", parts)


def dump(thing, protocol=2, old=True):
    found = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            if not isinstance(obj, Storage):
                return None
            found[obj.key] = obj.numbers
            kind = getattr(sys.modules["torch"], obj.kind)
            view = (obj.view or None,) if old else ()
            return ("storage", kind, obj.key, "cpu", len(obj.numbers), *view)

    out = io.BytesIO()
    Pickler(out, protocol).dump(thing)
    return out.getvalue(), found


def old_format(thing, protocol=2):
    stream, storages = dump(thing, protocol)
    out = b"".join(pickle.dumps(part, 2) for part in (MAGIC, PROTOCOL, SYSTEM)) + stream
    out += pickle.dumps(list(storages), 2)
    for numbers in storages.values():
        out += len(numbers).to_bytes(8, "little") + numbers.tobytes()
    return out


def archive_format(thing, protocol=2, compression=zipfile.ZIP_STORED, prefix="archive"):
    stream, storages = dump(thing, protocol, old=False)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        archive.writestr(f"{prefix}/data.pkl", stream)
        archive.writestr(f"{prefix}/byteorder", "little")
        for key, numbers in storages.items():
            archive.writestr(f"{prefix}/data/{key}", numbers.tobytes())
    return out.getvalue()


FORMATS = pytest.mark.parametrize("write", [old_format, archive_format])


def read(tmp_path, contents, suffix=".pth"):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(contents)
    return weight_files.read_weights(path)


@pytest.fixture
def state():
    rng = np.random.default_rng(0)
    shared = Storage("7", rng.normal(size=48).astype(np.float32))
    halves = rng.normal(size=5).astype(ml_dtypes.bfloat16)
    tensors = collections.OrderedDict(
        whole=whole("0", rng.normal(size=(2, 3)).astype(np.float32)),
        count=whole("1", np.array(12, np.int64), "LongStorage"),
        halves=whole("2", halves, "BFloat16Storage"),
        transposed=Tensor(shared, 0, (8, 6), (1, 8)),
        part=Tensor(shared, 9, (3, 2), (16, 3)),
        empty=Tensor(shared, 0, (0, 3), (3, 1)),
    )
    tensors._metadata = collections.OrderedDict(version=1)
    base = shared.numbers.reshape(6, 8)
    expected = {
        "whole": tensors["whole"].parts[0].numbers.reshape(2, 3),
        "count": np.array(12, np.int64),
        "halves": halves,
        "transposed": base.T,
        "part": np.stack([base.reshape(-1)[[i, i + 3]] for i in (9, 25, 41)]),
        "empty": np.zeros((0, 3), np.float32),
    }
    return tensors, expected


@FORMATS
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_torch_files_give_their_tensors(tmp_path, state, write, protocol, wrapper):
    tensors, expected = state
    other = whole("99", np.zeros(3, np.float32))  # of an optimizer
    thing = tensors if wrapper is None else {"epoch": 3, "optimizer": [other], wrapper: tensors}
    found = read(tmp_path, write(thing, protocol))
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, name)


def test_an_old_storage_may_be_part_of_another(tmp_path):
    numbers = np.arange(10, dtype=np.float32)
    view = Storage("0", numbers, view=("1", 4, 3))
    found = read(tmp_path, old_format({"a": Tensor(view, 1, (2,), (1,))}))
    np.testing.assert_array_equal(found["a"], [5, 6])
    outside = Storage("0", numbers, view=("1", 8, 3))
    with pytest.raises(ValueError, match="shorter"):
        read(tmp_path, old_format({"a": Tensor(outside, 0, (1,), (1,))}))


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@FORMATS
@pytest.mark.parametrize("name", ["posix.system", "builtins.eval", "builtins.getattr"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_other_globals_are_refused(tmp_path, write, name, protocol):
    module, _, function = name.partition(".")
    flag = tmp_path / "ran"
    call = Call(getattr(__import__(module), function), f"open({str(flag)!r}, 'w')")
    with pytest.raises(ValueError, match=f"refused.*names ({name}|__builtin__.{function})"):
        read(tmp_path, write({"a": call}, protocol))
    assert not flag.exists()


@pytest.mark.parametrize(
    "stream, message",
    [
        (b"(S'echo'\nios\nsystem\n.", "opcode STRING"),
        (b"(ios\nsystem\n.", "opcode INST"),
        (b"(cos\nsystem\no.", "names os.system"),
        (b"(o.", "opcode OBJ"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "opcode NEWOBJ"),
        (b"\x80\x02P1\n.", "opcode PERSID"),
        (b"\x80\x02)Q.", "persistent identity"),
        (b"\x80\x02ccollections\nOrderedDict\nX\x01\x00\x00\x00a\x85R.", "calls collections.Ord"),
        (b"\x80\x02X\x01\x00\x00\x00a)R.", "calls str"),
        (b"\x80\x02ctorch\nSize\n}b.", "adds to what is no dict"),
        (b"\x80\x02}))s.", "key that is a tuple"),
        (b"\x80\x02}h\x05.", "refers to"),
        (b"\x80\x02t.", "no mark"),
        (b"\x80\x02}(s.", "takes more"),
        (b"\x80\x02}}.", "more than one"),
        (b"\x80\x02}", "exhausted"),
        (b"\x80\x02X\xff\xff\xff\x7fa.", "expected 2147483647 bytes"),
    ],
)
@pytest.mark.parametrize("archive", [False, True])
def test_streams_that_no_state_dict_needs_are_refused(tmp_path, stream, message, archive):
    if archive:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as made:
            made.writestr("a/data.pkl", stream)
        contents = out.getvalue()
    else:
        contents = b"".join(pickle.dumps(p, 2) for p in (MAGIC, PROTOCOL, SYSTEM)) + stream
    with pytest.raises(ValueError, match=f"is refused.*{message}"):
        read(tmp_path, contents)


def test_an_old_storage_has_numbers_of_one_size(tmp_path):
    numbers = np.zeros(2, np.int64)
    tensors = {"a": whole("0", numbers, "LongStorage"), "b": whole("0", numbers, "FloatStorage")}
    with pytest.raises(ValueError, match="two sizes"):
        read(tmp_path, old_format(tensors))


@FORMATS
@pytest.mark.parametrize(
    "offset, shape, strides",
    [
        (0, (4, 3), (3, 1)),
        (1, (10,), (1,)),
        (0, (2,), (10,)),
        (0, (1 << 40,), (0,)),
        (-1, (2,), (1,)),
        (4, (2,), (-1,)),
        (0, (2, 2), (1,)),
        (0, (-1,), (1,)),
    ],
)
def test_views_beyond_their_storage_are_refused(tmp_path, write, offset, shape, strides):
    storage = Storage("0", np.arange(10, dtype=np.float32))
    with pytest.raises(ValueError, match="beyond its storage|no natural number"):
        read(tmp_path, write({"a": Tensor(storage, offset, shape, strides)}))


@FORMATS
def test_tied_weights_are_read_and_tensors_without_end_are_not(tmp_path, write):
    tensor = whole("0", np.arange(6, dtype=np.float32))
    names = ("shared", "encoder", "decoder", "head", "none")
    found = read(tmp_path, write(dict.fromkeys(names[:4], tensor)))
    assert set(found) == set(names[:4]) and all(np.array_equal(v, range(6)) for v in found.values())
    with pytest.raises(ValueError, match="tensors have 120 bytes, over 4 times the 24"):
        read(tmp_path, write(dict.fromkeys(names, tensor)))


@FORMATS
def test_truncated_files_are_refused(tmp_path, state, write):
    contents = write(state[0])
    for length in [*range(0, len(contents), 37), len(contents) - 1]:
        with pytest.raises(ValueError, match="is refused"):
            read(tmp_path, contents[:length])


def test_archives_with_odd_members_are_refused(tmp_path, state):
    for prefix in ("..", "/etc", "a/.."):
        with pytest.raises(ValueError, match="points out of the folder"):
            read(tmp_path, archive_format(state[0], prefix=prefix))
    with pytest.raises(ValueError, match="is compressed"):
        read(tmp_path, archive_format(state[0], compression=zipfile.ZIP_DEFLATED))


@FORMATS
@pytest.mark.parametrize("thing", [[1], {"a": 1}, {"state_dict": {"a": None}}])
def test_what_is_no_dict_of_tensors_is_refused(tmp_path, write, thing):
    with pytest.raises(ValueError, match="no dict of tensors"):
        read(tmp_path, write(thing))


def test_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.arange(3), b=np.ones((2, 2), np.float32))
    found = weight_files.read_weights(path)
    np.testing.assert_array_equal(found["a"], [0, 1, 2])
    np.testing.assert_array_equal(found["b"], np.ones((2, 2)))
    contents = path.read_bytes()
    np.savez(path, a=np.array([{}], object))
    with pytest.raises(ValueError, match="is refused.*allow_pickle"):
        weight_files.read_weights(path)
    with pytest.raises(ValueError, match="is refused"):
        read(tmp_path, contents[:-30], ".npz")


def safetensors(header, data):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_safetensors(tmp_path):
    a, b = np.arange(6, dtype=np.float32), np.arange(3).astype(ml_dtypes.bfloat16)
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [3], "data_offsets": [24, 30]},
    }
    contents = safetensors(header, a.tobytes() + b.tobytes())
    found = read(tmp_path, contents, ".safetensors")
    np.testing.assert_array_equal(found["a"], a.reshape(2, 3))
    np.testing.assert_array_equal(found["b"], b)
    for length in (0, 7, 20, len(contents) - 1):
        with pytest.raises(ValueError, match="is refused"):
            read(tmp_path, contents[:length], ".safetensors")
    for entry in (
        {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 20]},
        {"dtype": "F32", "shape": [-2, -3], "data_offsets": [0, 24]},
        {"dtype": "F32", "shape": [2, 3], "data_offsets": [-8, 16]},
        {"dtype": "F32", "shape": [2, 3], "data_offsets": [8, 32]},
        {"dtype": "X", "shape": [6], "data_offsets": [0, 24]},
        {"dtype": "F32", "shape": 6, "data_offsets": [0, 24]},
        7,
    ):
        with pytest.raises(ValueError, match="'a'"):
            read(tmp_path, safetensors({"a": entry}, a.tobytes()), ".safetensors")


def test_other_suffixes_and_fingerprints(tmp_path):
    with pytest.raises(ValueError, match=".safetensors"):
        read(tmp_path, b"", ".bin")
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert weight_files.fingerprint(path) == "ba7816bf8f01cfea"  # FIPS 180-2, appendix B.1


def test_what_unpacks_to_far_more_than_it_is_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "zeros.npz"
    np.savez_compressed(path, x=np.zeros(2**28 // 4 + 1, np.float32))
    assert path.stat().st_size < 2**20
    with pytest.raises(ValueError, match="unpack to"):
        weight_files.read_weights(path)
