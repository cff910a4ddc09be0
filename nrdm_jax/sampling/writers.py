"""Samples as files: a grid to look at, a file each, and a manifest that says how to make them
again."""

import json
import math
import os
import pathlib
import re
import unicodedata
import zipfile

import numpy as np
from PIL import Image


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether an example of this shape can be written as a picture: (H, W, 1 or 3)."""
    return len(shape) == 3 and shape[-1] in (1, 3)


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


def write_png(path: pathlib.Path, image: np.ndarray) -> None:
    """(H, W, 1 or 3) uint8 -> a PNG, which appears whole or not at all."""
    partial = path.with_suffix(".partial")
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(partial, format="PNG")
    os.replace(partial, path)


def is_stack(shape: tuple[int, ...]) -> bool:
    """Whether an example is a stack of pictures, the frames of a clip or the slices of a volume:
    (T, H, W, 1 or 3)."""
    return len(shape) == 4 and shape[-1] in (1, 3)


def write_gif(path: pathlib.Path, stacks: np.ndarray, milliseconds: int = 120) -> None:
    """(N, T, H, W, 1 or 3) uint8 -> an endless GIF of a grid of them, whole or not at all."""
    frames = [grid(stacks[:, i]) for i in range(stacks.shape[1])]
    pictures = [Image.fromarray(f[..., 0] if f.shape[-1] == 1 else f) for f in frames]
    partial = path.with_suffix(".partial")
    pictures[0].save(
        partial, format="GIF", save_all=True, append_images=pictures[1:], duration=milliseconds,
        loop=0,
    )  # fmt: skip
    os.replace(partial, path)


def strips(stacks: np.ndarray, most: int = 8) -> np.ndarray:
    """(N, T, H, W, C) uint8 -> one picture, a row an example: up to `most` of its frames or slices,
    evenly from the first to the last."""
    places = np.linspace(0, stacks.shape[1] - 1, min(most, stacks.shape[1])).round().astype(int)
    return grid(stacks[:, places].reshape(-1, *stacks.shape[2:]), columns=len(places))


class NpzWriter:
    """Samples as the evaluators of others read them (ADM's `arr_0`, `arr_1`): uint8 pixels (n, *S,
    C) and int64 labels (n,), written as they come; the file appears whole or not at all.

    Args:
      path: of the file.
      shape: (n, *S, C), of all samples.
    """

    def __init__(self, path: pathlib.Path, shape: tuple[int, ...]):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._partial = path, path.with_suffix(".partial")
        self._left, self._labels = shape[0], []  # type: ignore[var-annotated]
        self._archive = zipfile.ZipFile(self._partial, "w", zipfile.ZIP_STORED)
        self._pixels = self._archive.open("arr_0.npy", "w", force_zip64=True)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._pixels, header)

    def add(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        self._pixels.write(np.ascontiguousarray(pixels, np.uint8).tobytes())
        self._labels.append(np.asarray(labels, np.int64))
        self._left -= len(pixels)

    def close(self) -> None:
        """Finishes the file if all samples were added, and leaves none otherwise."""
        self._pixels.close()
        if not self._left:
            with self._archive.open("arr_1.npy", "w") as file:
                np.lib.format.write_array(file, np.concatenate(self._labels))
        self._archive.close()
        if self._left:
            self._partial.unlink()
        else:
            os.replace(self._partial, self._path)


def write_trajectory(
    directory: pathlib.Path, x: np.ndarray, pixels: np.ndarray, most: int = 16
) -> pathlib.Path:
    """Writes (n, k, *S, C) estimates of n samples on their way and returns the file: a picture of a
    row each of the first `most`, noise on the left, of clips and volumes the frame or slice in the
    middle; the array, of what is no picture.

    Args:
      directory: made where it is absent.
      x: float32, as estimated.
      pixels: the same in uint8, or decoded.
    """
    directory.mkdir(parents=True, exist_ok=True)
    shape = pixels.shape[2:]
    if not (is_image(shape) or is_stack(shape)):
        np.save(directory / "trajectory.npy", x)
        return directory / "trajectory.npy"
    rows = pixels[:most] if is_image(shape) else pixels[:most, :, shape[0] // 2]
    file = directory / "trajectory.png"
    write_png(file, grid(rows.reshape(-1, *rows.shape[2:]), columns=x.shape[1]))
    return file


def in_a_name(caption: str, most: int = 40) -> str:
    """`a red car: 2 doors` -> `a-red-car-2-doors`: letters and digits of any script, shortened;
    safe as a part of a file's name everywhere."""
    words = re.sub(r"\W+", "-", unicodedata.normalize("NFC", caption)).strip("-")
    # A file's name may have 255 bytes.
    short = words.encode()[:most].decode("utf-8", "ignore").strip("-")
    return short or "no-text"


def write_samples(
    directory: pathlib.Path,
    x: np.ndarray,
    pixels: np.ndarray,
    manifest: dict,
    original: np.ndarray | None = None,
) -> pathlib.Path:
    """Writes samples into `directory` and returns the file to look at first.

    Pictures become grid.png and one PNG each; clips and volumes grid.gif (its time is the first
    axis), slices.png (a row each of the first 16) and samples.npy; anything else samples.npy. In
    what shows several, each has its original to the left, where there are such.
    manifest.json lists, beside what it is given, the file of each.

    Args:
      x: (n, *S, C) float32, as sampled.
      pixels: the same in uint8, or decoded, (n, *S', 1 or 3).
      manifest: JSON values; `seeds` and `labels` have n entries, and `captions`, if there are any,
        which are in the files' names in the labels' place.
      original: as pixels.
    """
    directory.mkdir(parents=True, exist_ok=True)
    shown = pixels if original is None else np.concatenate([original, pixels], axis=-2)
    if is_image(pixels.shape[1:]):
        first = directory / "grid.png"
        write_png(first, grid(shown))
        told = [f"label{label}" for label in manifest["labels"]]
        if manifest.get("captions"):
            told = [in_a_name(caption) for caption in manifest["captions"]]
        files = [f"{i:05d}_seed{seed}_{words}.png" for i, (seed, words) in
                 enumerate(zip(manifest["seeds"], told, strict=True))]  # fmt: skip
        for name, image in zip(files, pixels, strict=True):
            write_png(directory / name, image)
    else:
        first = directory / "samples.npy"
        np.save(first, x)
        files = [first.name] * len(x)
        if is_stack(pixels.shape[1:]):
            write_png(directory / "slices.png", strips(shown[:16]))
            first = directory / "grid.gif"
            write_gif(first, shown)
    (directory / "manifest.json").write_text(json.dumps(manifest | {"files": files}, indent=2))
    return first
