"""That what is committed outlives a loss of power."""

import os
import pathlib

SMALL = 2**20  # bytes; the files of values are synchronised by who writes them


def sync(directory: pathlib.Path, step: int) -> None:
    """Flushes the small files of a step and all directories that name them, up to the one above
    `directory`: to rename a directory is to write the one that it is in. Nothing where there is no
    such step any more."""
    for root, _, names in os.walk(directory / str(step), topdown=False):
        for name in names:
            file = pathlib.Path(root, name)
            if file.stat().st_size <= SMALL:
                _flush(file)
        _flush(pathlib.Path(root))
    _flush(directory)
    _flush(directory.parent)


def _flush(path: pathlib.Path) -> None:
    try:
        number = os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # removed meanwhile, as a step that is not kept
        return
    try:
        os.fsync(number)
    finally:
        os.close(number)
