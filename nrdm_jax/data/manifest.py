"""What a prepared data set is made of: its files with their checksums, and the items left out."""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

from nrdm_jax.bounded_files import BoundedFile, check_name, file_below, read_object
from nrdm_jax.data.errors import DataError, named

MANIFEST = "manifest.json"


def checksum(path: pathlib.Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises as `BoundedFile`."""
    with BoundedFile(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: pathlib.Path, value) -> None:
    """The file appears whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write(directory: pathlib.Path, name: str, corrupt: Mapping[str, str]) -> None:
    """Lists every file of `directory` with its size and checksum, and the items left out of the
    set `name`, with reasons."""
    files = sorted(path for path in directory.iterdir() if path.name != MANIFEST)
    write_json(
        directory / MANIFEST,
        {
            "name": name,
            "files": {
                path.name: {"bytes": path.stat().st_size, "sha256": checksum(path)}
                for path in files
            },
            "corrupt": dict(corrupt),
        },
    )


def read(directory: pathlib.Path) -> dict:
    """Raises:
    DataError: there is none, or it is damaged.
    """
    path = directory / MANIFEST
    if not path.exists():
        raise DataError(f"{directory} has no {MANIFEST}: it was not made by `nrdm data prepare`")
    with named(str(path), " is damaged"):
        found = read_object(path)
        files, corrupt = found["files"], found["corrupt"]
        if not (isinstance(files, dict) and isinstance(corrupt, dict)):
            raise DataError("files and corrupt are to be objects")
        if not all(isinstance(reason, str) for reason in corrupt.values()):
            raise DataError("what is corrupt has no reason")
        for name, said in files.items():
            if "/" in check_name(name) or not isinstance(said["sha256"], str):
                raise DataError(f"the entry of {name!r} is none of a file of the set")
    return found


def checksums(directory: pathlib.Path, files: Sequence[str]) -> list[str]:
    """SHA-256 of files of a prepared set, by their names, as they were written.

    Raises:
      DataError: the manifest is absent or damaged, or does not list one.
    """
    listed = read(directory)["files"]
    for name in files:
        if name not in listed:
            raise DataError(f"{directory / MANIFEST} does not list {name}; prepare the set anew")
    return [listed[name]["sha256"] for name in files]


def left_out(directory: pathlib.Path) -> dict[str, str]:
    """item -> reason, of those that are not in a prepared set; none where there is no manifest.

    Raises:
      DataError: the manifest is damaged.
    """
    return read(directory)["corrupt"] if (directory / MANIFEST).exists() else {}


def verify(directory: pathlib.Path) -> int:
    """The number of files, each of which is what the manifest says.

    Raises:
      DataError: files are absent or not as they were written, naming each.
    """
    files = read(directory)["files"]
    faults = []
    for name, said in files.items():
        try:
            if checksum(file_below(directory, name)) != said["sha256"]:
                faults.append(f"{name} is not as it was written")
        except (FileNotFoundError, IsADirectoryError):
            faults.append(f"{name} is not there")
        except ValueError as error:  # a link out of the directory, a pipe
            faults.append(str(error))
    if faults:
        raise DataError(
            f"{directory}: {'; '.join(faults)}; remove the directory and prepare the set anew"
        )
    return len(files)
