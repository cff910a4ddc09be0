"""Errors that are the data's fault and not the config's."""


class DataError(ValueError):
    """Missing, empty or damaged data, or a label out of range; the process ends with exit code
    65."""

    exit_code = 65


class NoRecordsError(DataError):
    """There is not one record."""
