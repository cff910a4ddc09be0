"""Contact sheets: pictures in rows, each with its first words below."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL, LINE, GAP = 96, 14, 4  # pixels: the least width of a cell, a line of text, between cells


def contact_sheet(images: np.ndarray, titles: tuple[str, ...], columns_of: int = 1) -> np.ndarray:
    """(N, H, W, 1 or 3) uint8 and N titles -> one RGB picture, about square, on white; small images
    enlarged, titles cut off where a cell ends. The columns are a multiple of `columns_of`."""
    count, height, width, channels = images.shape
    factor = max(1, math.ceil(CELL / width))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    images = np.broadcast_to(images, (*images.shape[:3], 3)) if channels == 1 else images
    across, down = width * factor + GAP, height * factor + LINE + GAP
    columns = max(1, math.ceil(math.sqrt(count * down / across)))
    columns = -(-columns // columns_of) * columns_of
    sheet = Image.new(
        "RGB", (columns * across + GAP, math.ceil(count / columns) * down + GAP), "white"
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(LINE - 4)
    for i, (image, title) in enumerate(zip(images, titles, strict=True)):
        x, y = GAP + i % columns * across, GAP + i // columns * down
        sheet.paste(Image.fromarray(np.ascontiguousarray(image)), (x, y))
        text = _cut(title, font, width * factor)
        draw.text((x, y + height * factor), text, "black", font)
    return np.asarray(sheet)


def _cut(title: str, font, width: int) -> str:
    """As much of a title's one line as fits into `width` pixels."""
    line = " ".join(title.split())
    while line and font.getlength(line) > width:
        line = line[:-1]
    return line
