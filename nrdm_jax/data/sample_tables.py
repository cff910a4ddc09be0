"""How many samples the tables of an MP4 or QuickTime file say there are, by its bytes alone.

A table of samples of one size, or of a fragment's defaults, has a number for all of them, and
FFmpeg takes some 80 bytes for each before it has seen one.
"""

import re

from nrdm_jax.bounded_files import BoundedFile
from nrdm_jax.data.errors import DataError

# Of all tracks, whatever the length: sound that is not packed has samples of two bytes.
LEAST_SAMPLES = 2**20
MOST_BOXES, MOST_BOX = 2**20, 2**28  # beside those of the samples themselves, and bytes of each
# ISO/IEC 14496-12, 8.7.3 and 8.8.8: the tag, version and flags; the sizes, or the size; the count.
# Looked ahead to, so that none hides behind what only seems to be one.
TABLE = re.compile(rb"(?=(?:stsz|stz2).{8}(.{4})|trun.{4}(.{4}))", re.DOTALL)
REFUSED = 2**28  # samples of a fragment, by FFmpeg: what has more is a word, as "truncated"


def check(file: BoundedFile) -> None:
    """Leaves the file at its beginning.

    Raises:
      DataError: it says that there are more samples than its bytes can hold, or its tables are
        packed, so that they may say anything.
    """
    at = boxes = samples = 0
    most = max(LEAST_SAMPLES, file.length // 2)
    while at < file.length:
        file.seek(at)
        start = file.read(16)
        size = int.from_bytes(start[:4], "big")
        size = int.from_bytes(start[8:], "big") if size == 1 else size
        if size < 8:  # of 0: to the end
            size = file.length - at
        if start[4:8] != b"mdat":
            boxes += 1
            if boxes > MOST_BOXES or min(size, file.length - at) > MOST_BOX:
                raise DataError(
                    f"has more than {MOST_BOXES:,} boxes beside its samples, or one of more than "
                    f"{MOST_BOX:,} bytes"
                )
            file.seek(at)
            samples += _said(file.read(size))
        if samples > most:
            raise DataError(f"says that its {file.length:,} bytes hold {samples:,} samples")
        at += size
    file.seek(0)


def _said(box: bytes) -> int:
    """Samples. Tables are looked for wherever they are: FFmpeg reads those of boxes within boxes
    in any order, and of any size."""
    if b"cmvd" in box:
        raise DataError("has packed tables of samples; write it anew, as by ffmpeg -c copy")
    found = 0
    for table in TABLE.finditer(box):
        count = int.from_bytes(table[1] or table[2], "big")
        found += count if table[1] or count < REFUSED else 0
    return found
