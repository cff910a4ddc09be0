"""Exit codes of every entry, and the exceptions that carry them."""

DONE = 0
FAILED = 1  # a defect: a traceback is printed
USAGE = 2  # a flag or a config field
BAD_DATA = 65
NON_FINITE = 70
PEER_LOST = 71
IO = 74
PREEMPTED = 75


class Stop(Exception):
    """Ends the process with `exit_code`, after one message and no traceback."""

    def __init__(self, exit_code: int, message: str):
        super().__init__(message)
        self.exit_code = exit_code


class NotFinite(Stop):
    """What a model has made is not finite: the end of an entry that was to measure it, and a
    warning in a run that trains on."""

    def __init__(self, message: str):
        super().__init__(NON_FINITE, message)
