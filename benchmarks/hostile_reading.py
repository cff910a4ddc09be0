"""How rows of hostile files are read: by the entries of the package, and with an eye on what a file
may not do."""

import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.fault_rows import ROOT, Answer, Row, call, entry
from nrdm_jax.processes import exit_codes

GROUP = "hostile file"
CONFIG = f"--config={ROOT}/configs/openmoji32.py"
USAGE, BAD_DATA = exit_codes.USAGE, exit_codes.BAD_DATA
Change = Callable[[pathlib.Path], object]  # of a directory
# What hostile files try to make, below the folder of their row.
EXECUTED = "executed"


def row(
    name: str, code: int, says: str, make: Callable[[pathlib.Path], Any],
    read: Callable[[Any], Answer],
) -> Row:  # fmt: skip
    """A row by what writes the file, in the row's folder, and what reads what that returned."""
    return Row(name, GROUP, code, says, functools.partial(_run, make, read))


def _run(
    make: Callable[[pathlib.Path], Any], read: Callable[[Any], Answer], scratch: pathlib.Path
) -> Answer:
    inside = scratch / "inside"
    inside.mkdir()
    made = make(inside)
    before = _beside(scratch)
    answer = read(made)
    if (scratch / EXECUTED).exists():
        return -1, "what is in the file was executed"
    new = _beside(scratch) - before
    return (-1, f"it wrote {new.pop()}") if new else answer


def _beside(scratch: pathlib.Path) -> set[pathlib.Path]:
    """All that is not where an entry was asked to write."""
    inner = (scratch / "inside", scratch / "out")
    return {p for p in scratch.rglob("*") if not any(p.is_relative_to(i) for i in inner)}


def out_of(inside: pathlib.Path) -> pathlib.Path:
    """Where entries write."""
    return inside.parent / "out"


def prepare(
    name: str, inside: pathlib.Path, shape: str, variables: Mapping[str, str] | None = None
) -> Answer:
    """nrdm data prepare NAME; nothing may be left out."""
    arguments = ("prepare", name, f"--shape={shape}", f"--dir={out_of(inside)}", "--corrupt=fail")
    return entry("data_sets", *arguments, variables=variables)


def weights(file: pathlib.Path) -> Answer:
    """nrdm encode with the file as an autoencoder's weights."""
    fields = {
        "data.name": "synthetic",
        "data.shape": "(8,8,4)",
        "autoencoder.name": "sd",
        "autoencoder.weights": str(file),
    }
    flags = [f"--config.{field}={value}" for field, value in fields.items()]
    return entry("encode_dataset", CONFIG, f"--workdir={out_of(file.parent)}", *flags)


def sample(workdir: pathlib.Path) -> Answer:
    """nrdm sample of a run, which is described by its config.json."""
    return entry("sample", f"--workdir={workdir}", f"--out={out_of(workdir)}")


def reading(read: Callable[[pathlib.Path], Any]) -> Callable[[pathlib.Path], Answer]:
    """By a function that an entry calls."""
    return lambda path: call(lambda: read(path))


def written(name: str, content: bytes | str | dict) -> Callable[[pathlib.Path], pathlib.Path]:
    """-> the file `name` of that content."""

    def make(inside: pathlib.Path) -> pathlib.Path:
        text = json.dumps(content) if isinstance(content, dict) else content
        path = inside / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return make


def edited(name: str, edit: Callable[[dict], object]) -> Change:
    """Of a JSON file of a directory."""

    def change(home: pathlib.Path) -> None:
        values = json.loads((home / name).read_text())
        edit(values)
        (home / name).write_text(json.dumps(values))

    return change
