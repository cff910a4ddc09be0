"""Surfaces of densities as triangles, and as OBJ and PLY files.

Marching tetrahedra (Doi and Koide, 1991): each cube of eight neighbours is six tetrahedra around
its diagonal from (0, 0, 0) to (1, 1, 1) (Kuhn, 1960), alike in all cubes, so that neighbours share
whole faces. In a tetrahedron a level is a triangle or a quadrangle, without the ambiguities of
cubes. A side of a triangle lies within one face, which two tetrahedra share, or is the diagonal of
one quadrangle: it belongs to exactly two triangles, and the surface is closed.
"""

import itertools
import pathlib

import numpy as np

from nrdm_jax.sampling.files import whole

# (6, 4, 3): the corners of each tetrahedron, one axis after the other in every order.
_STEPS = np.asarray([np.eye(3, dtype=int)[list(p)] for p in itertools.permutations(range(3))])
TETRAHEDRA = np.concatenate([np.zeros((6, 1, 3), int), np.cumsum(_STEPS, axis=1)], axis=1)
# Number of corners inside -> the triangles' corners, each on an edge between two corners of the
# tetrahedron, of which those inside come first.
TRIANGLES = {
    1: [((0, 1), (0, 2), (0, 3))],
    2: [((0, 2), (0, 3), (1, 3)), ((0, 2), (1, 3), (1, 2))],
    3: [((0, 3), (1, 3), (2, 3))],
}
CLOSEST = 0.01  # of an edge, that the surface keeps from its ends: no triangle is a point


def surface(density: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Where a density crosses a level: corners (V, 3) and triangles (F, 3) of their numbers.

    Outside the array it is as far below the level as its highest value is above: the surface is
    always closed, with each side in two triangles. Corners are in voxels, [0, D] x [0, H] x [0, W],
    a voxel's middle at its number plus a half; seen from outside, and (D, H, W) taken for
    right-handed axes, corners go round counterclockwise. Empty, where no voxel is above the level.

    Args:
      density: (D, H, W).
      level: what is above is inside.
    """
    outside = 2 * level - max(float(density.max()), level)
    values = np.pad(density.astype(np.float64), 1, constant_values=outside)
    inside = values > level
    shape, flat = values.shape, values.ravel()
    cubes = np.argwhere(_mixed(inside))
    corners = cubes[:, None, None, :] + TETRAHEDRA[None]
    numbers = np.ravel_multi_index(tuple(np.moveaxis(corners, -1, 0)), shape).reshape(-1, 4)
    within = inside.ravel()[numbers]
    order = np.argsort(~within, axis=1, kind="stable")
    numbers, count = np.take_along_axis(numbers, order, axis=1), within.sum(axis=1)

    edges, outwards = [], []
    for number, triangles in TRIANGLES.items():
        chosen = numbers[count == number]
        places = np.stack(np.unravel_index(chosen, shape), axis=-1)
        out = places[:, number:].mean(axis=1) - places[:, :number].mean(axis=1)
        for triangle in triangles:
            edges.append(chosen[:, np.asarray(triangle)])
            outwards.append(out)
    between = np.concatenate(edges).reshape(-1, 2)  # (3 F, 2) numbers of voxels, inside first
    unique, faces = np.unique(between, axis=0, return_inverse=True)
    faces = faces.reshape(-1, 3)

    ends = np.stack(np.unravel_index(unique, shape), axis=-1)
    above, below = flat[unique[:, 0]], flat[unique[:, 1]]
    along = np.clip((above - level) / (above - below), CLOSEST, 1 - CLOSEST)[:, None]
    found = ends[:, 0] + along * (ends[:, 1] - ends[:, 0]) - 0.5  # of the padding, and a half
    a, b, c = np.moveaxis(found[faces], 1, 0)
    inwards = np.einsum("fk,fk->f", np.cross(b - a, c - a), np.concatenate(outwards)) < 0
    faces[inwards] = faces[inwards][:, ::-1]
    return found, faces


def _mixed(inside: np.ndarray) -> np.ndarray:
    """Cubes, by their first corner, of which some corners are inside and some are not."""
    parts = [
        inside[tuple(slice(i, size - 1 + i) for i, size in zip(offset, inside.shape, strict=True))]
        for offset in itertools.product((0, 1), repeat=3)
    ]
    return np.any(parts, axis=0) & ~np.all(parts, axis=0)


def upright(
    corners: np.ndarray, faces: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """From [z, y, x] (up, to the back, to the right), in voxels, to what viewers take: x to the
    right, y up, z to the front, about the middle, the longest axis of the array of length 1.

    The first order is left-handed: to stay counterclockwise, triangles are turned round.
    """
    z, y, x = ((corners - np.asarray(shape) / 2) / max(shape)).T
    return np.stack([x, z, -y], axis=1), faces[:, ::-1]


def write_obj(path: pathlib.Path, corners: np.ndarray, faces: np.ndarray) -> None:
    """(V, 3) and (F, 3), from 0 -> Wavefront OBJ, from 1."""
    lines = [f"v {x:.5f} {y:.5f} {z:.5f}" for x, y, z in corners.tolist()]
    lines += [f"f {a} {b} {c}" for a, b, c in (faces + 1).tolist()]
    with whole(path) as partial:
        partial.write_text("\n".join(lines) + "\n")


def write_ply(path: pathlib.Path, corners: np.ndarray, faces: np.ndarray) -> None:
    """(V, 3) and (F, 3) -> binary PLY 1.0."""
    header = (
        "ply\nformat binary_little_endian 1.0\n"
        f"element vertex {len(corners)}\n"
        "property float x\nproperty float y\nproperty float z\n"
        f"element face {len(faces)}\n"
        "property list uchar int vertex_indices\nend_header\n"
    )
    rows = np.empty(len(faces), [("count", "u1"), ("corners", "<i4", 3)])
    rows["count"], rows["corners"] = 3, faces
    with whole(path) as partial:
        partial.write_bytes(header.encode() + corners.astype("<f4").tobytes() + rows.tobytes())
