"""What is wrong with a checkpoint on disk."""


class DamagedCheckpoint(Exception):
    """It is not what was saved: exit code 65. Nothing is trained on, or drawn from, by guess."""

    exit_code = 65
