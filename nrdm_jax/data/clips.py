"""Files of moving pictures, as clips of one shape."""

import importlib.util
import math
import pathlib
from collections.abc import Iterable, Iterator
from typing import NoReturn

import numpy as np
from PIL import Image, ImageSequence

from nrdm_jax.bounded_files import BoundedFile
from nrdm_jax.data import sample_tables
from nrdm_jax.data.errors import DataError, named
from nrdm_jax.data.pictures import MOST_PIXELS, check_size, fitted, opened

ANIMATED = (".gif", ".webp", ".apng")  # Pillow's
ENCODED = (".mp4", ".mov", ".webm", ".mkv", ".avi", ".m4v")  # PyAV's
SUFFIXES = ANIMATED + ENCODED
# FFmpeg's names of what these are. It knows lists of other files as well, which it would open.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
BEGINNINGS = {b"\x1a\x45\xdf\xa3": "matroska", b"RIFF": "avi"}  # else mov, which has none
# Frames of a file: half an hour of an animation, a day of a video.
MOST_FRAMES = {ANIMATED: 2**16, ENCODED: 2**22}
# Pixels that are decoded of a file, and of each of its bytes: slides that hardly change take some
# 10^4 of them a byte, and a picture that is repeated for ever takes 10^7.
LEAST_DECODED, MOST_DECODED = 2**30, 2**17


def check(files: Iterable[pathlib.Path]) -> None:
    """Raises:
    ValueError: they need PyAV, which is not installed.
    """
    first = next((file for file in files if file.suffix.lower() in ENCODED), None)
    if first and importlib.util.find_spec("av") is None:
        raise ValueError(
            f"{first.name} is read by PyAV, which is not installed: "
            "bash launch/local.sh --setup-only --extras=video"
        )


def read_frames(path: pathlib.Path, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The frames in the order in which they are shown, upright, on white: (H, W, C) uint8.

    Args:
      path: one of `SUFFIXES`.
      shape: (H, W, 1 or 3).

    Raises:
      DataError: the file cannot be decoded, or not to its end.
      OSError, MemoryError: the machine fails, which says nothing of the file.
    """
    kind = ENCODED if path.suffix.lower() in ENCODED else ANIMATED
    with named(str(path), ": cannot be decoded"), BoundedFile(path) as file:
        pictures = _encoded(file) if kind is ENCODED else _animated(file)
        most, decoded = max(LEAST_DECODED, MOST_DECODED * file.length), 0
        for count, picture in enumerate(pictures, 1):
            decoded += math.prod(picture.size)
            if count > MOST_FRAMES[kind] or decoded > most:
                raise DataError(
                    f"is longer than {MOST_FRAMES[kind]:,} frames, or of {file.length:,} bytes "
                    f"makes more than {most:,} pixels"
                )
            yield np.asarray(fitted(picture, shape)).reshape(shape)


def _animated(file: BoundedFile) -> Iterator[Image.Image]:
    with opened(file) as picture:
        check_size(picture.size)
        if picture.format == "MPO":  # of its pictures the first alone was looked at
            raise DataError("is of several pictures of JPEG, and no animation")
        yield from ImageSequence.Iterator(picture)


def _refuse(url: str, flags: int, options: dict) -> NoReturn:
    raise DataError(f"names another file, {url}")


def _encoded(file: BoundedFile) -> Iterator[Image.Image]:
    import av

    try:
        # Opened here, so that what the system says comes from here: PyAV's errors of damaged files
        # have the system's numbers, too.
        kind = BEGINNINGS.get(file.read(4), "mov")
        file.seek(0)
        if kind == "mov":
            sample_tables.check(file)
        with av.open(
            file, "r", kind, container_options={"format_whitelist": CONTAINERS}, io_open=_refuse
        ) as container:
            if not container.streams.video:
                raise DataError("has no pictures")
            stream = container.streams.video[0]
            check_size((stream.width, stream.height))
            stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}  # of later frames
            for frame in container.decode(stream):
                picture = frame.to_image()
                # The turn, in degrees against the clock, that a player makes.
                yield picture.rotate(frame.rotation, expand=True) if frame.rotation else picture
    except av.FFmpegError as error:
        raise DataError(f"cannot be decoded: {error}") from error


def windows(
    frames: Iterable[np.ndarray], count: int, stride: int = 1, hop: int | None = None
) -> Iterator[np.ndarray]:
    """Clips of `count` frames, each `stride` after the one before: (count, H, W, C).

    Args:
      frames: (H, W, C) each.
      hop: frames from the beginning of a clip to that of the next; by default count * stride, so
        that no frame is in two.
    """
    hop = hop or count * stride
    span = (count - 1) * stride + 1
    held: list[np.ndarray] = []
    skip = 0  # of frames to come, where clips do not touch
    for frame in frames:
        if skip:
            skip -= 1
            continue
        held.append(frame)
        if len(held) == span:
            yield np.stack(held[::stride])
            skip = max(0, hop - span)
            held = held[hop:]
