"""Pictures, (N, H, W, 1 or 3) uint8, as sheets and files."""

import math
import pathlib

import numpy as np
from PIL import Image

from nrdm_jax.sampling.files import whole


def grid(images: np.ndarray, columns: int | None = None, gap: int = 2) -> np.ndarray:
    """(N, H, W, C) uint8 -> one picture, near square or `columns` wide, row by row, on white; small
    images enlarged."""
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.full(
        (rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, np.uint8
    )
    for i, image in enumerate(images):
        y, x = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        sheet[y : y + height, x : x + width] = image
    factor = max(1, 64 // height)
    return sheet.repeat(factor, axis=0).repeat(factor, axis=1)


def as_picture(image: np.ndarray) -> Image.Image:
    """(H, W, 1 or 3) uint8."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def write_png(path: pathlib.Path, image: np.ndarray) -> None:
    """(H, W, 1 or 3) uint8 -> a PNG, which appears whole or not at all."""
    with whole(path) as partial:
        as_picture(image).save(partial, format="PNG")
