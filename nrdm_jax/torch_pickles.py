"""The opcodes of torch's pickles, interpreted over a list of the globals that they may name.

A pickle can call anything. None is unpickled here: the opcodes that a dict of tensors needs are
interpreted one by one, and the first opcode or global beyond them refuses the file. Nothing is
imported or called.
"""

import collections
import dataclasses
import pickletools
from typing import Any, BinaryIO, NoReturn

import ml_dtypes
import numpy as np

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
# Entries that its calls make dicts of, from lists that it may name again and again: of a few bytes
# each it could ask for as many as there is memory and time for.
_MOST_ENTRIES = 2**20


@dataclasses.dataclass(frozen=True)
class Global:
    """Something that a pickle names, before it is called or referred to."""

    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of numbers in the file: `count` of them from `first` on in the storage `key`."""

    key: str
    dtype: np.dtype
    first: int
    count: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage, in elements; the storage's bytes are read later."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Mark:
    pass


def interpret(file: BinaryIO, sizes: dict[str, int] | None = None) -> Any:
    """The object of the pickle at the file's position, which is left behind it: dicts, lists,
    tuples, strings, numbers, `Tensor` and `Global`.

    Args:
      file: of bytes in memory.
      sizes: bytes of a number of each storage that it mentions are added, by the storage's key.

    Raises:
      ValueError: it is damaged, or has an opcode or a global that no dict of tensors needs.
    """
    sizes = {} if sizes is None else sizes
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    entries = 0

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
                match arguments:
                    case ([*_],):  # as many pairs are walked, be they of one key
                        entries += len(arguments[0])
                if entries > _MOST_ENTRIES:
                    _refuse(f"its pickle makes dicts of over {_MOST_ENTRIES:,} entries by calls")
                stack.append(_call(function, arguments))
            case "BUILD":
                pop()  # the attribute _metadata of a state dict: versions of its modules
                grow(dict)
            case _:
                _refuse(f"its pickle has the opcode {opcode.name}")
    raise ValueError("its pickle does not end")


def _refuse(what: str) -> NoReturn:
    raise ValueError(f"{what}, which no dict of tensors needs: save the network's state_dict()")


def _allowed(name: str) -> Global:
    if name not in _CALLABLES and name not in _STORAGES:
        _refuse(f"its pickle names {name}")
    return Global(name)


def _checked_key(key: Any) -> str | int:
    # Only these: the hash of nested tuples can take for ever.
    if not isinstance(key, str | int):
        _refuse(f"its pickle has a key that is a {type(key).__name__}")
    # An int is its own hash up to 2^61 - 1, of which all multiples have the hash 0: a dict of those
    # takes the square of their number.
    if isinstance(key, int) and abs(key) >= 2**60:
        _refuse("its pickle has a key that is an int of over 60 bits")
    return key


def _naturals(*values: Any) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _storage(identity: Any) -> Storage:
    """Of torch's persistent identity ("storage", type, key, place, count[, view])."""
    match identity:
        case ("storage", Global(name), str(key), str(), int(count), *view) if name in _STORAGES:
            first = 0
            if view and view[0] is not None:
                match view[0]:  # in a part of another storage, which is the one in the file
                    case (str(), int(first), int(count)):
                        pass
                    case _:
                        _refuse("its pickle has a malformed view of a storage")
            if len(view) < 2 and _naturals(first, count):
                return Storage(key, np.dtype(_STORAGES[name]), first, count)
    _refuse("its pickle has a persistent identity that is no storage")


def _call(function: Any, arguments: Any) -> Any:
    """What a call would have made, for the few that a dict of tensors needs."""
    match function, arguments:
        case Global("collections.OrderedDict"), ():
            return collections.OrderedDict()
        case Global("collections.OrderedDict"), ([*pairs],):
            if all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
                return collections.OrderedDict((_checked_key(k), v) for k, v in pairs)
        case Global("torch.Size"), (tuple(shape),):
            return shape
        case Global("torch._utils._rebuild_parameter"), (Tensor() as tensor, *_):
            return tensor
        case (
            Global("torch._utils._rebuild_tensor_v2"),
            (Storage() as storage, int(offset), tuple(shape), tuple(strides), *_),
        ):
            if not _naturals(offset, *shape, *strides) or len(shape) != len(strides):
                raise ValueError("a tensor's shape, strides or offset is no natural number")
            if len(shape) > 32:
                raise ValueError("a tensor has more than 32 axes")
            return Tensor(storage, offset, shape, strides)
    name = function.name if isinstance(function, Global) else type(function).__name__
    _refuse(f"its pickle calls {name} with other arguments than torch.save does")
