"""Meshes as voxels.

A shape is (n, n, n) occupancy indexed [z, y, x]: x to its right, y to its back, z up. OBJ
files have y up and z to the front.
"""

import io
import itertools

import numpy as np
import scipy.ndimage

from nrdm_jax.data.errors import DataError

SPACING = 0.5  # of points on a surface, in voxels; see `voxelised`
MOST_PARTS = 2**22  # corners, and triangles, of a mesh
MOST_LINES, MOST_LINE = 2**24, 2**18  # of a file, and characters of one
MOST_POINTS = 2**25  # on a surface


def read_obj(text: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Corners (V, 3) float64 as they are in the file, and triangles (F, 3) of their numbers.

    Faces of more corners are cut into a fan; colours, normals and curves are left out.

    Args:
      text: of a Wavefront OBJ file.
      name: of it, for errors.

    Raises:
      DataError: there is no face, a corner is no three numbers, or a face names one that is not
        there; or there are more than `MOST_PARTS`, or lines than `MOST_LINES`, or one is longer
        than `MOST_LINE`.
    """
    corners: list[list[float]] = []
    triangles: list[tuple[int, int, int]] = []
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if number > MOST_LINES or max(len(corners), len(triangles)) > MOST_PARTS:
            raise DataError(
                f"{name} has more than {MOST_PARTS:,} corners or triangles, or {MOST_LINES:,} lines"
            )
        if len(line) > MOST_LINE:
            raise DataError(f"{name}, line {number}: has more than {MOST_LINE:,} characters")
        kind, *values = line.split("#")[0].split() or [""]
        try:
            if kind == "v":
                x, y, z = map(float, values[:3])
                corners.append([x, y, z])
            elif kind == "f":
                # From 1; negative: back from the last one so far. What follows a / is of colours.
                places = [int(value.split("/")[0]) for value in values]
                face = [p - 1 if p > 0 else p + len(corners) for p in places]
                fan = itertools.pairwise(face[1:])
                triangles += [(face[0], second, third) for second, third in fan]
        except ValueError as error:
            raise DataError(f"{name}, line {number}: {line.strip()[:60]!r}: {error}") from error
    if not triangles:
        raise DataError(f"{name} has no faces")
    lowest, highest = min(map(min, triangles)), max(map(max, triangles))
    if lowest < 0 or highest >= len(corners):
        raise DataError(f"{name} has faces of corners that it lacks")
    return np.asarray(corners), np.asarray(triangles)


def from_obj_axes(corners: np.ndarray) -> np.ndarray:
    """(V, 3) with y up and z to the front -> [z, y, x] with z up and y to the back."""
    return np.stack([corners[:, 1], -corners[:, 2], corners[:, 0]], axis=1)


def surface_points(corners: np.ndarray, triangles: np.ndarray, spacing: float) -> np.ndarray:
    """(P, 3) points on triangles: the corners of parts none of whose sides is above `spacing`."""
    abc = corners[triangles]
    sides = np.linalg.norm(abc - np.roll(abc, 1, axis=1), axis=-1).max(axis=1)
    parts = np.maximum(np.ceil(sides / spacing), 1).astype(int)
    if ((parts + 1) * (parts + 2) // 2).sum() > MOST_POINTS:
        raise DataError(f"a surface of more than {MOST_POINTS:,} points, {spacing} voxels apart")
    found = []
    for count in np.unique(parts):
        i, j = np.mgrid[: count + 1, : count + 1].reshape(2, -1)
        i, j = i[i + j <= count], j[i + j <= count]
        weights = np.stack([count - i - j, i, j], axis=1) / count
        found.append(np.einsum("pk,fkc->fpc", weights, abc[parts == count]).reshape(-1, 3))
    return np.concatenate(found)


def voxelised(corners: np.ndarray, triangles: np.ndarray, size: int) -> np.ndarray:
    """(size, size, size) bool: what a surface goes through, and what it shuts in.

    The surface need not be closed or oriented, as few meshes of furniture are; thin walls stay. The
    longest axis fills the cube, the others are in its middle.

    A surface is tight: from a voxel outside none inside is reached through faces. For where the
    line between the middles of two neighbours crosses it, no point of `surface_points` is further
    than `SPACING` / sqrt(3) < 1/2 away, and so lies in one of the two.

    Args:
      corners: (V, 3), in the order of the axes of the result.
      triangles: (F, 3).
      size: of the cube.

    Raises:
      DataError: the mesh is a single point, is not finite, or is of more than `MOST_POINTS`.
    """
    used = corners[np.unique(triangles)]
    low, high = used.min(axis=0), used.max(axis=0)
    with np.errstate(over="ignore", invalid="ignore"):
        extent = (high - low).max()
    # A float has 53 bits: a mesh that is small beside its place has no shape.
    if not np.isfinite(extent) or extent <= max(1e-9 * np.abs(used).max(), 1e-100):
        raise DataError(f"a mesh of extent {extent}, from {low.tolist()} on; give it a size")
    # A hair smaller, so that sides that end where voxels do touch those inside, and all of them.
    scale = size / extent * (1 - 1e-4)
    with np.errstate(over="ignore", invalid="ignore"):  # of corners that no face has
        placed = (corners - (low + high) / 2) * scale + size / 2
    points = surface_points(placed, triangles, SPACING)
    touched = np.zeros((size,) * 3, bool)
    touched[tuple(np.floor(points).astype(int).T)] = True
    return scipy.ndimage.binary_fill_holes(touched)
