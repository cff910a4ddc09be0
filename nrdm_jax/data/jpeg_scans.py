"""How many scans a JPEG has, by its markers: each goes over the whole picture, has as few as ten
bytes, and is decoded before anything of it is seen."""

import re

from nrdm_jax.data.errors import DataError

MOST_SCANS = 100  # as libtiff has it; those who write progressive pictures make about ten
MOST_BYTES = 2**29  # of a file
BEGINNING = b"\xff\xd8"
# ITU-T T.81, B.1.1: in what a scan codes 0 stands behind each 255, and restarts belong to it.
MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
END, SCAN, FIRST_LONG = 0xD9, 0xDA, 0xC0  # below FIRST_LONG a marker has no length


def check(content: bytes) -> None:
    """Args:
      content: from the beginning of a JPEG; what is behind its end is not looked at, which may be
        of any kind, as the film of a moving photograph.

    Raises:
      DataError: it has more than `MOST_SCANS` scans, or is of more than `MOST_BYTES`.
    """
    if len(content) > MOST_BYTES:
        raise DataError(f"is a JPEG of more than {MOST_BYTES:,} bytes")
    at, scans = len(BEGINNING), 0
    while marker := MARKER.search(content, at):
        kind, at = marker[1][0], marker.end()
        if kind == END:
            break
        scans += kind == SCAN
        if scans > MOST_SCANS:
            raise DataError(f"is a JPEG of more than {MOST_SCANS} scans")
        if kind >= FIRST_LONG:  # thumbnails and profiles are within such a length
            at += int.from_bytes(content[at : at + 2], "big")
