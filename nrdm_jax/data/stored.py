"""What is computed once and kept on disk: whole or not at all, whoever is first."""

import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable


def once(home: pathlib.Path, write: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """The folder `home`; where it is not there, `write` fills another one, which then gets its
    name. Several processes may do so at a time: the first one's stays."""
    if home.exists():
        return home
    home.parent.mkdir(parents=True, exist_ok=True)
    # No number of a process is its own where several containers share a disk.
    partial = pathlib.Path(
        tempfile.mkdtemp(prefix=f"{home.name}.", suffix=".partial", dir=home.parent)
    )
    try:
        write(partial)
        os.rename(partial, home)
    except OSError:
        if not home.exists():  # else another process was first
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone, where it is home
    return home
