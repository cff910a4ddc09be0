"""That what was written outlives a loss of power."""

import os
import pathlib

SMALL = 2**20  # bytes; the files of values are synchronised by who writes them


def flush(path: pathlib.Path) -> None:
    """Of a file, or of the names in a directory."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def flush_tree(directory: pathlib.Path) -> None:
    """Of the small files in a directory, and of all directories there, itself the last: to be done
    before it gets its name."""
    for root, _, names in os.walk(directory, topdown=False):
        for name in names:
            file = pathlib.Path(root, name)
            if file.stat().st_size <= SMALL:
                flush(file)
        flush(pathlib.Path(root))


def flush_name(directory: pathlib.Path) -> None:
    """Of a directory that was renamed: of the one in which that is, and the one above, in which it
    may be new; and of the marks that were put beside its contents meanwhile."""
    for mark in directory.iterdir():
        if mark.is_file():
            flush(mark)
    for place in (directory, directory.parent, directory.parent.parent):
        flush(place)
