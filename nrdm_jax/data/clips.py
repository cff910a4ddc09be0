"""Files of moving pictures, as clips of one shape."""

import importlib.util
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image, ImageSequence

from nrdm_jax.data.errors import DataError, is_of_machine
from nrdm_jax.data.pictures import fitted

ANIMATED = (".gif", ".webp", ".apng")  # Pillow's
ENCODED = (".mp4", ".mov", ".webm", ".mkv", ".avi", ".m4v")  # PyAV's
SUFFIXES = ANIMATED + ENCODED


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
    pictures = _encoded(path) if path.suffix.lower() in ENCODED else _animated(path)
    try:
        for picture in pictures:
            yield np.asarray(fitted(picture, shape)).reshape(shape)
    except Exception as error:  # of either library, whatever it comes upon
        if is_of_machine(error):
            raise
        raise DataError(f"{path}: cannot be decoded: {error}") from error


def _animated(path: pathlib.Path) -> Iterator[Image.Image]:
    with Image.open(path) as picture:
        yield from ImageSequence.Iterator(picture)


def _encoded(path: pathlib.Path) -> Iterator[Image.Image]:
    import av

    try:
        # Opened here, so that what the system says comes from here: PyAV's errors of damaged files
        # have the system's numbers, too.
        with path.open("rb") as file, av.open(file, "r") as container:
            if not container.streams.video:
                raise DataError("has no pictures")
            for frame in container.decode(video=0):
                picture = frame.to_image()
                # The turn, in degrees against the clock, that a player makes.
                yield picture.rotate(frame.rotation, expand=True) if frame.rotation else picture
    except av.FFmpegError as error:
        raise DataError(str(error)) from error


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
