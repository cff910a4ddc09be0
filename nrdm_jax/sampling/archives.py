"""Samples in one archive, as the evaluators of others read them."""

import os
import pathlib
import zipfile

import numpy as np


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
