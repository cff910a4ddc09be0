"""Folders of files that a user has: their splits, classes and captions.

    ROOT/cat/1.jpg, ROOT/dog/2.jpg                  a class a sub-folder
    ROOT/train/cat/1.jpg, ROOT/test/cat/2.jpg       splits by folder; test, val or heldout
    ROOT/1.jpg, ROOT/1.txt                          a caption beside each
    ROOT/captions.jsonl or metadata.jsonl           lines {"file_name": "1.jpg", "text": "a cat"}

Without a folder for it, a twentieth of the files is held out, by a hash of their paths; with one,
only it and train/ are read. Nothing hidden is.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import stat
from collections.abc import Collection, Iterator
from typing import NoReturn

from nrdm_jax.bounded_files import check_link, check_name, parse_json, read_lines, read_text
from nrdm_jax.data.errors import DataError, named

HELDOUT = ("heldout", "val", "validation", "test")  # the first that is there
TABLES = ("captions.jsonl", "metadata.jsonl")
ALL = "all"  # the class of files in no sub-folder


@dataclasses.dataclass(frozen=True)
class File:
    """Attributes:
    path: of the file.
    key: its path below the folder, with slashes.
    label: its class.
    caption: None where it has none.
    """

    path: pathlib.Path
    key: str
    label: str
    caption: str | None


@dataclasses.dataclass(frozen=True)
class Listing:
    """Attributes:
    splits: train and heldout, in the order of the keys.
    classes: in order.
    captioned: whether there are captions; a file without one then lacks it.
    stamp: of paths, sizes and times of change, 12 digits: another one says that the files may be
      others, and not that they are.
    """

    splits: dict[str, tuple[File, ...]]
    classes: tuple[str, ...]
    captioned: bool
    stamp: str


def list_folder(root: pathlib.Path, suffixes: tuple[str, ...]) -> Listing:
    """What is in a folder, by the names of its files alone, but for captions, which are read.

    Raises:
      DataError: there are no two such files, or a caption file is damaged.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no directory")
    stamps = {path.relative_to(root).as_posix(): path for path in walk_files(root)}
    _check_names(root, stamps)
    found = {key: path for key, path in stamps.items() if path.suffix.lower() in suffixes}
    captions = _captions(root, stamps, found)
    # What has a caption and is not there is an item like others, and found to be corrupt.
    found |= {key: root / key for key in captions if key.lower().endswith(suffixes)}
    if len(found) < 2:
        raise DataError(
            f"{root} holds {len(found)} files of {', '.join(suffixes)}; one to train on and one to "
            "hold out are needed"
        )
    splits = {
        split: tuple(
            File(found[key], key, _label(key, below), captions.get(key) or None)
            for key in sorted(keys)
        )
        for split, (below, keys) in _by_split(found).items()
    }
    classes = sorted({file.label for files in splits.values() for file in files})
    if ALL in classes and len(classes) > 1:
        loose = next(f for files in splits.values() for f in files if f.label == ALL)
        raise DataError(f"{loose.path} is in no sub-folder, and others are; move it into its class")
    read = found.keys() | {_beside(key) for key in found}
    stamp = stamp_of(
        {key: path for key, path in stamps.items() if key in read or path.name in TABLES}
    )
    return Listing(splits, tuple(classes), bool(captions), stamp)


def walk_files(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """All files, links followed, but nothing hidden and no folder twice.

    Raises:
      DataError: a link leads out of the folder, or what is there is no regular file.
      OSError: a folder cannot be listed.
    """
    seen = set()

    def fail(error: OSError) -> NoReturn:
        raise error

    def checked(path: pathlib.Path) -> pathlib.Path:
        kind = path.lstat().st_mode
        if stat.S_ISLNK(kind):
            with named(str(root)):
                check_link(path, root)
            kind = path.stat().st_mode if path.exists() else stat.S_IFREG  # of what is missing
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            raise DataError(f"{path} is no regular file; remove it")
        return path

    for place, below, files in os.walk(root, followlinks=True, onerror=fail):
        real = os.path.realpath(place)
        below[:] = [] if real in seen else sorted(d for d in below if _shown(d))
        if real not in seen:
            for name in below:
                checked(pathlib.Path(place, name))
            yield from (
                checked(pathlib.Path(place, file)) for file in sorted(files) if _shown(file)
            )
        seen.add(real)


def _shown(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _check_names(root: pathlib.Path, stamps: dict[str, pathlib.Path]) -> None:
    for key in stamps:
        try:
            key.encode()
        except UnicodeEncodeError:
            raise DataError(f"{root}: the name {key!r} is no UTF-8; rename the file") from None


def _by_split(found: dict[str, pathlib.Path]) -> dict[str, tuple[str, list[str]]]:
    """split -> (what stands before the class in its keys, keys)."""
    named = split_folders(found)
    if "heldout" in named:
        return {
            split: (f"{folder}/", [key for key in found if key.startswith(f"{folder}/")])
            for split, folder in named.items()
        }
    below = "train/" if named else ""
    chosen = {key for key in found if number_of(key) < 1 / 20} or {min(found, key=number_of)}
    return {"train": (below, [*set(found) - chosen]), "heldout": (below, [*chosen])}


def split_folders(keys: Collection[str]) -> dict[str, str]:
    """split -> the folder that holds it: train and heldout, where there are folders for both; train
    alone, where all is in it; else none, and a folder of such a name is a class."""
    tops = {key.split("/")[0] for key in keys if "/" in key}
    heldout = next((name for name in HELDOUT if name in tops), None)
    if "train" in tops and heldout:
        return {"train": "train", "heldout": heldout}
    return {"train": "train"} if all(key.startswith("train/") for key in keys) else {}


def number_of(key: str) -> float:
    """In [0, 1), by the key alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48


def _label(key: str, below: str) -> str:
    folder, _, rest = key.removeprefix(below).partition("/")
    return folder if rest else ALL


def _captions(
    root: pathlib.Path, stamps: dict[str, pathlib.Path], found: dict[str, pathlib.Path]
) -> dict[str, str]:
    captions: dict[str, str] = {}
    for path in stamps.values():
        if path.name in TABLES:
            captions |= _table(root, path)
    for key in found:
        beside = stamps.get(_beside(key))
        if beside:
            with named(str(beside), " is no text in UTF-8"):
                captions[key] = read_text(beside).strip()
    return captions


def _beside(key: str) -> str:
    return key.rsplit(".", 1)[0] + ".txt"


def _table(root: pathlib.Path, path: pathlib.Path) -> dict[str, str]:
    captions = {}
    with named(str(path)):
        for number, line in read_lines(path):
            if line.strip():
                says = f', line {number}: is not {{"file_name": …, "text": …}}'
                with named(str(path), says):
                    row = parse_json(line.decode())
                    file = check_link(path.parent / check_name(row["file_name"]), root)
                    text = str(row["text"]).strip()
                    text.encode()  # JSON can have halves of characters, which nothing can write
                    captions[file.relative_to(root).as_posix()] = text
    return captions


def stamp_of(stamps: dict[str, pathlib.Path]) -> str:
    """Of files by their keys: what changes with them, without that they are read."""
    digest = hashlib.sha256()
    for key, path in sorted(stamps.items()):
        stat = path.stat() if path.exists() else path.lstat()  # of a link to nothing
        digest.update(json.dumps([key, stat.st_size, stat.st_mtime_ns]).encode())
    return digest.hexdigest()[:12]
