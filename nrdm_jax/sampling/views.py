"""Shapes as one sees them: a surface of a density, shaded, without a graphics library."""

import numpy as np
import scipy.ndimage

AZIMUTHS = (30.0, 120.0, 210.0, 300.0)  # degrees about the vertical, from the front
ELEVATION = 25.0  # degrees above the ground
LIGHT = np.asarray((-0.4, 0.7, -0.6)) / np.linalg.norm((-0.4, 0.7, -0.6))  # right, up, away
AMBIENT = 0.3
SMOOTH = 0.7  # voxels, of what surfaces' directions are taken from: voxels are no stairs then


def rendered(density: np.ndarray, level: float, size: int = 96) -> np.ndarray:
    """Views of a shape from all sides, beside one another: (size, 4 size, 1) uint8 on white.

    Parallel rays through the density; where one first comes above the level it meets the surface,
    which is as bright as it faces the light, from the upper left.

    Args:
      density: (D, H, W), [z, y, x] with y to the back.
      level: of the surface.
      size: of a view, which holds the whole array from any side.
    """
    outside = 2 * level - max(float(density.max()), level)  # as of `meshes.surface`
    padded = np.pad(density.astype(np.float32), 2, constant_values=outside)
    return np.concatenate([_view(padded, level, size, a) for a in AZIMUTHS], axis=1)[..., None]


def axes_of(azimuth: float) -> np.ndarray:
    """(3, 3), rows: to the right, up and away in the picture, each as [z, y, x]."""
    turn, tilt = np.deg2rad(azimuth), np.deg2rad(ELEVATION)
    right = np.asarray([0.0, np.sin(turn), np.cos(turn)])
    level_away = np.asarray([0.0, np.cos(turn), -np.sin(turn)])
    vertical = np.asarray([1.0, 0.0, 0.0])
    up = np.sin(tilt) * level_away + np.cos(tilt) * vertical
    away = np.cos(tilt) * level_away - np.sin(tilt) * vertical
    return np.stack([right, up, away])


def _view(density: np.ndarray, level: float, size: int, azimuth: float) -> np.ndarray:
    axes = axes_of(azimuth)
    right, up, away = axes
    shape = np.asarray(density.shape)
    step = np.linalg.norm(shape) / size
    matrix = np.stack([-up, right, away], axis=1) * step  # of row, column and depth
    start = (shape - 1) / 2 - matrix @ np.full(3, (size - 1) / 2)
    seen = scipy.ndimage.affine_transform(
        density, matrix, start, output_shape=(size,) * 3, order=1, mode="nearest"
    )
    above = seen > level
    hit = above.any(axis=2)
    rows, columns = np.nonzero(hit)
    depths = above.argmax(axis=2)[hit]
    near, far = seen[rows, columns, np.maximum(depths - 1, 0)], seen[rows, columns, depths]
    met = depths - (far - level) / np.maximum(far - near, 1e-6)
    places = matrix @ np.stack([rows, columns, met]) + start[:, None]
    smooth = scipy.ndimage.gaussian_filter(density, SMOOTH)
    # The density falls outwards.
    normal = -np.stack([scipy.ndimage.map_coordinates(slope, places, order=1, mode="nearest")
                        for slope in np.gradient(smooth)])  # fmt: skip
    normal /= np.maximum(np.linalg.norm(normal, axis=0), 1e-6)
    facing = np.maximum(LIGHT @ axes @ normal, 0.0)
    picture = np.full((size, size), 255, np.uint8)
    picture[hit] = np.rint(235 * (AMBIENT + (1 - AMBIENT) * facing)).astype(np.uint8)
    return picture
