"""Files that others wrote, read within bounds: their bytes, lines and JSON, and what they name.

No number in a file is believed before it is compared with the bytes that are there, and no name in
one leads out of the folder that it is in. What is refused is a ValueError that says why.
"""

import collections
import errno
import io
import json
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import Any

MOST_JSON = 2**27  # bytes; the largest tokenizers that are published have 2^25
MOST_LINE = 2**20  # bytes of a line, or of a caption


class BoundedFile(io.BufferedReader):
    """A file open for reading, which never asks for more memory than the file has bytes left,
    however many are asked of it: Python's own takes what a damaged header says before it reads.

    Args:
      path: of the file.
      most: bytes that it may have; None: any number.

    Raises:
      OSError: it cannot be opened.
      ValueError: it is larger, or no regular file: a pipe would be waited for, a device never ends.
    """

    def __init__(self, path: str | os.PathLike, most: int | None = None):
        # Without waiting for whoever writes into a pipe.
        raw = io.FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        super().__init__(raw)
        found = os.fstat(raw.fileno())
        self.length = found.st_size
        try:
            if stat.S_ISDIR(found.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
            if not stat.S_ISREG(found.st_mode):
                raise ValueError(f"{path} is no regular file")
            if most is not None and self.length > most:
                raise ValueError(f"{path} has {self.length:,} bytes, more than {most:,}")
        except (OSError, ValueError):
            self.close()
            raise

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self.length - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


def read_bytes(path: str | os.PathLike, most: int | None = None) -> bytes:
    """Raises: as `BoundedFile`."""
    with BoundedFile(path, most) as file:
        return file.read()


def read_text(path: str | os.PathLike, most: int = MOST_LINE) -> str:
    """Of UTF-8, with or without a byte order mark.

    Raises:
      ValueError: it is none; else as `BoundedFile`.
    """
    return read_bytes(path, most).decode("utf-8-sig")


def read_lines(path: str | os.PathLike, most: int = MOST_LINE) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line), one at a time: the file may be of any size, a line only of `most`
    bytes. Lines end with a line feed and nothing else: JSON may have other separators in a text.

    Raises:
      ValueError: a line is longer, naming it; else as `BoundedFile`.
    """
    with BoundedFile(path) as file:
        number = 0
        while line := file.readline(most + 1):
            number += 1
            if len(line) > most:
                raise ValueError(f"{path}, line {number}: has more than {most:,} bytes")
            yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def parse_json(text: str | bytes, *, unique: bool = False) -> Any:
    """Args:
      unique: an object may not have two values of one name, of which Python would take the last.

    Raises:
      ValueError: it is no JSON, has a name twice, or is nested more deeply than Python can follow.
    """
    try:
        return json.loads(text, object_pairs_hook=_each_once if unique else None)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = collections.Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"it has {twice[:200]!r} twice")
    return found


def read_json(path: str | os.PathLike, most: int = MOST_JSON) -> Any:
    """Raises: as `BoundedFile` and `parse_json`; the file is named by the first alone."""
    return parse_json(read_bytes(path, most))


def read_object(path: str | os.PathLike, most: int = MOST_JSON) -> dict[str, Any]:
    """Raises:
    ValueError: it holds no JSON object; else as `read_json`.
    """
    values = read_json(path, most)
    if not isinstance(values, dict):
        raise ValueError("it is not an object")
    return values


def check_name(name: str) -> str:
    """A path as a file names it, below the folder that the file is in.

    Raises:
      ValueError: it is absolute, has `..` or a drive, or is no name that a system takes.
    """
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or ":" in parts[0]:
        raise ValueError(f"the name {name[:200]!r} points out of the folder")
    try:
        encoded = name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the name {name[:200]!r} is no text of UTF-8") from error
    if b"\0" in encoded or max(map(len, name.encode().split(b"/"))) > 255 or len(encoded) > 4000:
        raise ValueError(f"the name {name[:200]!r} is none that a file can have")
    return name


def check_link(path: pathlib.Path, root: pathlib.Path) -> pathlib.Path:
    """A path below `root`, which is one in truth as well, whatever links are on the way.

    A snapshot in a cache of Hugging Face's, REPOSITORY/snapshots/COMMIT, is made of links into
    REPOSITORY/blobs: those are followed. The folders above `root` say what it is, which nothing in
    it can choose.

    Raises:
      ValueError: links lead out of it, naming the path and where it is.
    """
    real, home = pathlib.Path(os.path.realpath(path)), pathlib.Path(os.path.realpath(root))
    places = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(real.is_relative_to(place) for place in places):
        raise ValueError(f"{path} is a link out of {root}, to {real}; put the file itself there")
    return path


def file_below(root: pathlib.Path, name: str) -> pathlib.Path:
    """The file in `root` that another file there names.

    Raises:
      ValueError: as `check_name` and `check_link`.
    """
    return check_link(root / check_name(name), root)
