"""What a compiled program sends between devices: its collectives, read from the optimised HLO."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4,
          "f32": 4, "s64": 8, "u64": 8, "f64": 8}  # fmt: skip
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)(?:e\d+m\d+\w*)?\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_SEVERAL = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Collective(NamedTuple):
    """All collectives of a kind over the same mesh axes, of one run of the program.

    Attributes:
      kind: of `KINDS`.
      axes: mesh axes over which devices talk.
      group: the first devices that talk to each other, as places in the flattened mesh; of a
        permutation a pair.
      times: how often, iterations of loops included.
      bytes: that a device receives.
    """

    kind: str
    axes: tuple[str, ...]
    group: tuple[int, ...]
    times: int
    bytes: int


def collectives(program: str, mesh: Mapping[str, int]) -> list[Collective]:
    """Of the text of an optimised HLO module, partitioned over a mesh of these axes and sizes;
    largest first."""
    found: dict[tuple, tuple[int, int]] = {}
    computations, entry = _computations(program)
    for name, times in _times(computations, entry).items():
        for line in computations[name]:
            instruction = _INSTRUCTION.match(line)
            if not instruction:
                continue
            kind = instruction[2].removesuffix("-start")
            if kind not in KINDS:
                continue
            group = _group(line, math.prod(mesh.values()))
            if len(group) < 2:
                continue
            started = instruction[2].endswith("-start")
            size = _size(instruction[1])
            if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                # A fusion of a TPU: each device sums, and has, its own part.
                kind, size = "reduce-scatter", size // len(group)
            received = _received(kind, size, len(group), started)
            key = (kind, _axes(group, mesh), tuple(group))
            count, total = found.get(key, (0, 0))
            found[key] = (count + times, total + times * received)
    rows = [
        Collective(kind, axes, group, times, total)
        for (kind, axes, group), (times, total) in found.items()
    ]
    return sorted(rows, key=lambda row: -row.bytes)


def custom_calls(program: str) -> dict[str, int]:
    """Kernels that the compiler did not make itself, such as Pallas's and cuDNN's: how often each
    is in the program's text."""
    return dict(Counter(re.findall(r'custom_call_target="([^"]+)"', program)))


def products(program: str) -> dict[str, int]:
    """Matrix products and convolutions in the program's text, by the type of their first operand:
    bf16, f32, s8, ..."""
    found: Counter[str] = Counter()
    computations, _ = _computations(program)
    for lines in computations.values():
        defined = _defined(lines)
        for value in defined.values():
            called = re.search(r" (?:dot|convolution)\((?:\w+\[[\d,]*\]\S* )?%?([\w.\-]+)", value)
            if called:
                shape = _ARRAY.search(defined.get(called[1], ""))
                found[shape[1] if shape else "?"] += 1
    return dict(found)


def instructions(program: str) -> int:
    """Of all computations, each counted once."""
    computations, _ = _computations(program)
    return sum(bool(_INSTRUCTION.match(line)) for lines in computations.values() for line in lines)


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation, and the name of the entry."""
    lines: dict[str, list[str]] = {}
    entry = current = ""
    for line in program.splitlines():
        header = None if line.startswith(" ") else _HEADER.match(line)
        if header:
            current = header[2]
            lines[current] = []
            entry = current if header[1] else entry
        elif current:
            lines[current].append(line)
    return lines, entry


def _times(computations: dict[str, list[str]], entry: str) -> dict[str, int]:
    """How often each computation runs in one run of the program."""
    times: dict[str, int] = {}

    def visit(name: str, count: int) -> None:
        if name not in computations:
            return
        times[name] = times.get(name, 0) + count
        for line in computations[name]:
            called = _CALLED.findall(line)
            for several in _SEVERAL.findall(line):
                called += [part.strip().lstrip("%") for part in several.split(",")]
            trips = 1
            if " while(" in line:
                known = _TRIPS.search(line)
                trips = int(known[1]) if known else _bound(line, computations)
            for other in called:
                visit(other, count * trips)

    visit(entry, 1)
    return times


def _bound(line: str, computations: dict[str, list[str]]) -> int:
    """Iterations of a loop that counts up from 0: the constant that its condition compares the
    counter with, over what its body adds to the counter. 1 where it is not such a loop."""
    names = [re.search(rf"{part}=%?([\w.\-]+)", line) for part in ("condition", "body")]
    condition, body = (_defined(computations.get(n[1], []) if n else []) for n in names)
    bounds = [_integer(value) for value in condition.values()]
    bound = max((n for n in bounds if n is not None), default=1)
    counter = re.search(r"get-tuple-element\(.*index=(\d+)", " ".join(condition.values()))
    root = next((value for value in body.values() if value.startswith("ROOT ")), "")
    following = _operands(root) if " tuple(" in root else []
    if not counter or int(counter[1]) >= len(following):
        return bound
    return max(1, bound // max(1, _added(following[int(counter[1])], body)))


def _added(name: str, defined: dict[str, str]) -> int:
    """What integers are added to an element of a tuple on its way to `name`."""
    value = defined.get(name, "")
    if not re.search(r" (add|copy|bitcast)\(", value):
        return 0
    total, inner = 0, ""
    for operand in _operands(value):
        number = _integer(defined.get(operand, ""))
        total, inner = (total, operand) if number is None else (total + number, inner)
    return total + _added(inner, defined)


def _defined(lines: list[str]) -> dict[str, str]:
    """name -> `[ROOT ]type operation(...)...` of each instruction."""
    found = (re.match(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$", line) for line in lines)
    return {one[2]: (one[1] or "") + one[3] for one in found if one}


def _integer(value: str) -> int | None:
    found = re.match(r"(?:ROOT )?[su]32\[\]\S* constant\((\d+)\)", value)
    return int(found[1]) if found else None


def _operands(value: str) -> list[str]:
    inner = re.sub(r"/\*.*?\*/", "", value)
    found = re.search(r" (?:tuple|add|copy|bitcast)\(([^)]*)\)", inner)
    return [name.strip().lstrip("%") for name in found[1].split(",")] if found else []


def _size(shape: str) -> int:
    """Bytes of an array or a tuple of arrays."""
    total = 0
    for kind, sizes in _ARRAY.findall(shape):
        width = _BYTES.get(kind, 1)  # what is not listed are the 8-bit floats
        total += width * math.prod(int(n) for n in sizes.split(",") if n)
    return total


def _received(kind: str, size: int, devices: int, started: bool) -> int:
    """Bytes that a device receives, given those of the instruction's result, by the best
    algorithm on a ring. What is started only has its operands in its result as well."""
    if started and kind == "all-gather":
        size = size * devices // (devices + 1)
    if started and kind == "reduce-scatter":
        size = size // (devices + 1)
    if started and kind in ("collective-permute", "all-to-all"):
        size = size // 2
    if kind == "collective-permute":
        return size
    if kind == "reduce-scatter":
        return size * (devices - 1)
    share = size * (devices - 1) // devices
    return 2 * share if kind == "all-reduce" else share


def _group(line: str, devices: int) -> list[int]:
    """The devices of one group, as places in the flattened mesh; of a permutation, one pair.

    Raises:
      ValueError: the groups are written in a form that is not known.
    """
    pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", line)
    if pairs:
        return [int(pairs[1]), int(pairs[2])]
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return [int(n) for n in listed[1].split(",")]
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if iota:
        shape = [int(n) for n in iota[1].split(",")]
        return _places(iota[2], iota[3]).reshape(shape)[0].tolist()
    named = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
        r" \{([^}]*)\}",
        line,
    )
    if named:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        chosen = re.findall(r"'([^']+)'", named[4])
        places = _places(named[2] or str(math.prod(sizes.values())), named[3])
        first = tuple(slice(None) if name in chosen else 0 for name in sizes)
        return places.reshape(tuple(sizes.values()))[first].flatten().tolist()
    if "replica_groups={}" in line or "replica_groups" not in line:
        return list(range(devices))
    raise ValueError(f"collective of unknown groups: {line.strip()[:500]}")


def _places(shape: str, transposed: str | None) -> np.ndarray:
    """0, 1, ... in this shape, `8,8`, its axes then in this order, `1,0`."""
    sizes = [int(n) for n in shape.split(",")]
    places = np.arange(math.prod(sizes)).reshape(sizes)
    return places.transpose([int(n) for n in transposed.split(",")]) if transposed else places


def _axes(group: list[int], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of a group differ."""
    places = np.asarray(np.unravel_index(group, tuple(mesh.values())))
    differ = (places != places[:, :1]).any(axis=1)
    return tuple(axis for axis, yes in zip(mesh, differ, strict=True) if yes)
