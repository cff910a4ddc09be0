"""Picture files of any kind and size, as pictures of one shape."""

import contextlib
import math
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps

from nrdm_jax.bounded_files import BoundedFile
from nrdm_jax.data import jpeg_scans
from nrdm_jax.data.errors import DataError, is_of_machine, named

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
# Whatever a file's name: of the other kinds that Pillow has, some start programs (EPS) or are read
# by code that few use.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MOST_PIXELS = 2**27  # of a picture: the largest sensors have 1.5 * 10^8, and JPEG's are reduced
MOST_WEBP = 2**26  # which Pillow decodes as it is opened, and holds three times
# Pillow would warn from here on, and refuse twice as many; here they are refused.
Image.MAX_IMAGE_PIXELS = MOST_PIXELS
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_picture(file: pathlib.Path | IO[bytes], name: str, shape: tuple[int, ...]) -> Image.Image:
    """The picture (the first, where there are several), upright, on white, of `shape`.

    Args:
      file: path, or open for reading.
      name: for the message.
      shape: (H, W, 1 or 3).

    Raises:
      DataError: it cannot be decoded, or its numbers have no known range.
      OSError, MemoryError: the machine fails, which says nothing of the picture.
    """
    with named(name, ": cannot be decoded"), opened(file) as picture:
        # JPEG can be decoded at a fraction of its size, several times as fast.
        picture.draft(None, (3 * max(shape[:2]),) * 2)
        check_size(picture.size)
        return fitted(ImageOps.exif_transpose(picture), shape)


@contextlib.contextmanager
def opened(file: pathlib.Path | IO[bytes], *, decodes: bool = True) -> Iterator[Image.Image]:
    """A picture of `FORMATS`, its header read. Raises as `BoundedFile` and `open_bounded`."""
    with contextlib.ExitStack() as stack:
        if isinstance(file, pathlib.Path):
            file = stack.enter_context(BoundedFile(file))
        yield stack.enter_context(open_bounded(file, decodes=decodes))


def open_bounded(file: IO[bytes], *, decodes: bool = True) -> Image.Image:
    """A picture of `FORMATS` in a file that is at its beginning, its header read.

    Args:
      file: open for reading.
      decodes: whether more than the header will be looked at: a JPEG is read for that.

    Raises:
      DataError: it is of WebP, which is decoded as it is opened, and of too many pixels; or a JPEG
        of too many scans.
      OSError, ValueError, …: as Pillow does.
    """
    start = file.read(30)
    file.seek(0)
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        check_size(_webp_size(start), MOST_WEBP)
    if decodes and start.startswith(jpeg_scans.BEGINNING):
        jpeg_scans.check(file.read(jpeg_scans.MOST_BYTES + 1))
        file.seek(0)
    return Image.open(file, formats=FORMATS)


def _webp_size(start: bytes) -> tuple[int, int]:
    """(width, height) by the first 30 bytes (RFC 9649, sections 2.5 to 2.7); 0 where they do not
    say."""

    def number(first: int, last: int) -> int:
        return int.from_bytes(start[first:last], "little")

    match start[12:16]:
        case b"VP8X":
            return 1 + number(24, 27), 1 + number(27, 30)
        case b"VP8L":
            return 1 + (number(21, 25) & 0x3FFF), 1 + (number(21, 25) >> 14 & 0x3FFF)
        case b"VP8 ":
            return number(26, 28) & 0x3FFF, number(28, 30) & 0x3FFF
    return 0, 0


def check_size(size: tuple[int, int], most: int = MOST_PIXELS) -> None:
    """Raises:
    DataError: (width, height) are of more pixels than are decoded.
    """
    if math.prod(size) > most:
        raise DataError(f"is of {size[0]} x {size[1]} pixels, more than {most:,}")


def size_of(path: pathlib.Path) -> tuple[int, int] | None:
    """(height, width) of a picture that is upright, by its header; None where it has none."""
    try:
        with opened(path, decodes=False) as picture:
            turned = picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return picture.size if turned else picture.size[::-1]
    except Exception as error:  # as above; `read_picture` will tell
        if is_of_machine(error):
            raise
        return None


def nearest(size: Sequence[int], shapes: Sequence[tuple[int, ...]]) -> int:
    """Number of the shape (H, W, C) whose aspect is nearest to that of a picture of `size` (H, W):
    the smallest ratio of the two; of those alike the one that is nearest in size."""

    def apart(shape: tuple[int, ...]) -> tuple[float, float]:
        high, wide = (math.log(a / b) for a, b in zip(size, shape, strict=False))
        return round(abs(high - wide), 9), abs(high + wide)

    return min(range(len(shapes)), key=lambda i: apart(shapes[i]))


def fitted(picture: Image.Image, shape: tuple[int, ...]) -> Image.Image:
    """Cropped around the middle to the aspect of `shape` (H, W, 1 or 3), and resized to it by a box
    filter to about three times the size, then Lanczos's; grey or RGB.

    Raises:
      DataError: its numbers have no known range.
    """
    height, width, channels = shape
    flat = opaque(picture)
    scale = min(flat.width / width, flat.height / height)
    across, down = width * scale, height * scale
    left, top = (flat.width - across) / 2, (flat.height - down) / 2
    return flat.convert("L" if channels == 1 else "RGB").resize(
        (width, height),
        Image.Resampling.LANCZOS,
        box=(left, top, left + across, top + down),
        reducing_gap=3.0,
    )


def opaque(picture: Image.Image) -> Image.Image:
    """The picture in 8 bits, grey or RGB; what is transparent is on white.

    Raises:
      DataError: it is of numbers of 32 bits, whose range is not known.
    """
    if picture.mode.startswith("I;16"):  # which Pillow would clip at 255
        return Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise DataError("is of numbers of 32 bits, whose range is not known")
    if picture.has_transparency_data:
        clear = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB")
