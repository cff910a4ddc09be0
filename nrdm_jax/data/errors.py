"""Errors that are the data's fault and not the config's."""

import contextlib
import errno
from collections.abc import Iterator

# What the system says of a file that is not there or not what it seems: EINVAL and EOVERFLOW of a
# place that a damaged header names and no file has.
_OF_THE_FILE = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL,
    errno.EOVERFLOW,
)  # fmt: skip


class DataError(ValueError):
    """Missing, empty or damaged data, or a label out of range; the process ends with exit code
    65."""

    exit_code = 65


class NoRecordsError(DataError):
    """There is not one record."""


def is_of_machine(error: BaseException) -> bool:
    """Whether reading failed by the machine's fault, as by a disk, a network or too many open
    files, so that another attempt may succeed. Libraries' errors in decoding have no number."""
    if isinstance(error, OSError):
        return error.errno is not None and error.errno not in _OF_THE_FILE
    return isinstance(error, MemoryError)


@contextlib.contextmanager
def named(name: str, says: str = " cannot be read") -> Iterator[None]:
    """Within it, whatever a library comes upon in a damaged file is the file's fault.

    Args:
      name: of the file, for the message.
      says: what of it, right behind the name.

    Raises:
      DataError: with the name; what the machine does to a file is raised as it is, see
        `is_of_machine`.
    """
    try:
        yield
    except NoRecordsError:
        raise
    except DataError as error:
        raise error if name in str(error) else DataError(f"{name}: {error}") from error
    except Exception as error:  # as of as many kinds as there are libraries
        if is_of_machine(error):
            raise
        raise DataError(f"{name}{says}: {error or type(error).__name__}") from error
