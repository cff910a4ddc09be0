"""What is wrong with a checkpoint on disk."""

import re


class DamagedCheckpoint(Exception):
    """It is not what was saved: exit code 65. Nothing is trained on, or drawn from, by guess."""

    exit_code = 65


class RemovedCheckpoint(DamagedCheckpoint):
    """It is there no longer: exit code 74."""

    exit_code = 74


def first_line(error: BaseException) -> str:
    """For a message; of what the system said to tensorstore, that."""
    system = system_message(error)
    return system or (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def system_message(error: BaseException) -> str:
    """`No space left on device`, where tensorstore's ValueError says that; or nothing."""
    found = re.search(r"(\w[\w ]+) \[os_error_code=", str(error))
    return found[1] if found else ""
