"""What is computed once and kept on disk: whole or not at all, whoever is first."""

import json
import os
import pathlib
import shutil
import tempfile
import zlib
from collections.abc import Callable

from nrdm_jax import durability
from nrdm_jax.bounded_files import BoundedFile, file_below, read_object
from nrdm_jax.data.errors import DataError, named

CHECKSUMS = "crc32.json"
BLOCK = 2**24  # bytes read at a time


def once(home: pathlib.Path, write: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """The folder `home`; where it is not there, `write` fills another one, which then gets its
    name. Several processes may do so at a time: the first one's stays.

    Raises:
      DataError: a file there has changed since it was written; they are read whole for that.
    """
    if home.exists():
        _check(home)
        return home
    home.parent.mkdir(parents=True, exist_ok=True)
    # No number of a process is its own where several containers share a disk.
    partial = pathlib.Path(
        tempfile.mkdtemp(prefix=f"{home.name}.", suffix=".partial", dir=home.parent)
    )
    try:
        write(partial)
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        sums = {file.relative_to(partial).as_posix(): _crc32(file) for file in files}
        (partial / CHECKSUMS).write_text(json.dumps(sums))
        # It gets its name when a loss of power cannot take its contents.
        for file in files:
            durability.flush(file)
        durability.flush_tree(partial)
        os.rename(partial, home)
        durability.flush(home.parent)
    except OSError:
        if not home.exists():  # else another process was first
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone, where it is home
    return home


def _check(home: pathlib.Path) -> None:
    """Of what older versions wrote there are no checksums."""
    if not (home / CHECKSUMS).exists():
        return
    with named(str(home / CHECKSUMS), " is damaged; remove its folder"):
        known = read_object(home / CHECKSUMS)
    for name, number in known.items():
        with named(str(home), " is damaged; remove it"):
            if _crc32(file_below(home, name)) != number:
                raise DataError(f"{name} has changed since it was written; remove the folder")


def _crc32(file: pathlib.Path) -> int:
    number = 0
    with BoundedFile(file) as opened:
        while block := opened.read(BLOCK):
            number = zlib.crc32(block, number)
    return number
