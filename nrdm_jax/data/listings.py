"""Folders of files that are looked at once a start, and by one process of several: what each of
them was found to be prepared as."""

import contextlib
import contextvars
import pathlib
from collections.abc import Iterator, MutableMapping

_found: contextvars.ContextVar[MutableMapping[str, str] | None] = contextvars.ContextVar(
    "found", default=None
)


@contextlib.contextmanager
def remembered(found: MutableMapping[str, str]) -> Iterator[None]:
    """Within it, a folder is not listed to open a set that `found` knows; one that is opened for
    the first time is noted there.

    Args:
      found: what was asked for -> its directory below that of prepared sets, as of this moment: to
        be given to other processes of the same job, and not to be kept.
    """
    token = _found.set(found)
    try:
        yield
    finally:
        _found.reset(token)


def directory_of(asked: str, data_dir: str) -> pathlib.Path | None:
    """Of a set that is known, and prepared in `data_dir`: others may have a disk of their own."""
    known = (_found.get() or {}).get(asked)
    home = pathlib.Path(data_dir) / known if known else None
    return home if home and (home / "dataset_info.json").exists() else None


def note(asked: str, data_dir: str, home: pathlib.Path) -> None:
    """That a set is prepared there."""
    found = _found.get()
    if found is not None:
        found[asked] = home.relative_to(data_dir).as_posix()
