"""Files that appear whole or not at all."""

import contextlib
import functools
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A name to write to beside `path`, which takes its place in the end; after an error nothing is
    left of it."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@functools.cache
def tell_once(message: str) -> None:
    print(message, flush=True)
