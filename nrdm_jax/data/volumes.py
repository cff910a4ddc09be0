"""Scans as arrays of one size: contrast, orientation, spacing.

Legend. A volume is (D, H, W): up, to the back or front, to the right, so that a scan is indexed
[z, y, x] with x to the patient's right, y to the front, z to the head (RAS+, read backwards), and
`data.flip`, which mirrors the last axis, exchanges right and left. Millimetres throughout.
"""

import math
from collections.abc import Sequence

import numpy as np
import scipy.ndimage

from nrdm_jax.data.errors import DataError

# Scanners have no unit of intensity, and a few voxels of them are far too bright.
DARKEST, BRIGHTEST = 0.5, 99.5  # percentiles
MOST_VOXELS = 2**29  # of a scan; a body by CT has 512 x 512 x 2000
# Of a voxel, mm: from a micrometre to a metre.
LEAST_SPACING, MOST_SPACING = 1e-3, 1e3
MOST_PRODUCTS = 2**38  # of smoothing along an axis, some minutes


def check_size(size: Sequence[int], name: str) -> None:
    """Raises:
    DataError: a scan has no voxels, or more than `MOST_VOXELS`.
    """
    if min(size) < 1 or math.prod(map(int, size)) > MOST_VOXELS:
        raise DataError(f"{name} is of {tuple(size)} voxels; give it 1 to {MOST_VOXELS:,}")


def windowed(volume: np.ndarray, name: str) -> np.ndarray:
    """Intensities -> float32 in [0, 1]: 0 at and below the percentile `DARKEST`, 1 at and above
    `BRIGHTEST`, of the finite ones; others are 0.

    Args:
      volume: any numbers.
      name: of the scan, for errors.

    Raises:
      DataError: all its voxels are alike.
    """
    finite = np.isfinite(volume)
    if not finite.any():
        raise DataError(f"{name} has no finite voxel")
    low, high = np.percentile(volume[finite], (DARKEST, BRIGHTEST))
    if low == high:  # more than 99 % are alike, as of a mask
        low, high = volume[finite].min(), volume[finite].max()
    if low == high:
        raise DataError(f"{name} has the intensity {low:g} in every voxel")
    scaled = (volume.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return np.clip(np.where(finite, scaled, 0.0), 0.0, 1.0)


def canonical(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, tuple[float, ...]]:
    """A scan turned to (D, H, W), and its spacing in mm along those axes.

    Axes are exchanged and mirrored, nothing is interpolated: what is left of an oblique scan's
    angle stays.

    Args:
      array: (I, J, K).
      affine: (4, 4), of indices to mm, x to the right, y to the front, z to the head (NIfTI).
    """
    from nibabel import orientations

    turn = orientations.io_orientation(affine)
    spacing = np.empty(3)
    spacing[turn[:, 0].astype(int)] = np.linalg.norm(affine[:3, :3], axis=0)
    turned = orientations.apply_orientation(array, turn)
    return turned.transpose(2, 1, 0), tuple(spacing[::-1].tolist())


def has_spacing(steps: np.ndarray) -> bool:
    """Whether indices are places in space: (3, 3), of one voxel along each axis, in mm."""
    if not np.isfinite(steps).all() or np.abs(steps).max() > 10 * MOST_SPACING:
        return False
    sides = np.linalg.norm(steps, axis=0)
    apart = sides.min() >= LEAST_SPACING and sides.max() <= MOST_SPACING
    return bool(apart and abs(np.linalg.det(steps)) >= 1e-9)


def fitted(
    volume: np.ndarray, spacing: tuple[float, ...], voxel: float, shape: tuple[int, ...]
) -> np.ndarray:
    """A scan on a grid of cubic voxels about its own middle: linear, 0 where it does not reach.

    Where voxels become larger it is smoothed before, by a Gaussian that takes out what they cannot
    show; where they stay as they are nothing is interpolated, even if the middles of an odd and an
    even number of voxels are half a voxel apart.

    Args:
      volume: (D, H, W) float32.
      spacing: of its voxels, mm.
      voxel: edge of the new ones, mm.
      shape: (D', H', W'); what lies outside is cut off.

    Raises:
      DataError: its voxels are so much smaller than the new ones that smoothing would take hours.
    """
    factors = voxel / np.asarray(spacing)
    factors = np.where(np.abs(factors - 1) < 1e-3, 1.0, factors)
    starts = (np.asarray(volume.shape) - 1) / 2 - factors * (np.asarray(shape) - 1) / 2
    starts = np.where(factors == 1, np.floor(starts), starts)
    # Beyond its own size there is nothing more to smooth: the mean of a scan is what it is.
    spread = np.minimum(np.maximum(factors - 1, 0) / 2, volume.shape)
    products = volume.size * int(8 * spread.max() + 1)  # SciPy's filter has 4 deviations each way
    if products > MOST_PRODUCTS:
        raise DataError(
            f"a scan of {volume.shape} voxels of {np.round(spacing, 4).tolist()} mm takes "
            f"{products:,} products to be smoothed to {voxel:.3g} mm, more than {MOST_PRODUCTS:,}"
        )
    smooth = scipy.ndimage.gaussian_filter(volume.astype(np.float32), spread, mode="nearest")
    out = scipy.ndimage.affine_transform(
        smooth, factors, starts, output_shape=shape, order=1, mode="nearest"
    )
    for axis, (start, factor, size) in enumerate(zip(starts, factors, volume.shape, strict=True)):
        places = start + factor * np.arange(shape[axis])
        outside = (places < -0.5) | (places > size - 0.5)
        out[(slice(None),) * axis + (outside,)] = 0.0
    return out


def fitted_mask(
    mask: np.ndarray, spacing: tuple[float, ...], voxel: float, shape: tuple[int, ...]
) -> np.ndarray:
    """Classes on the same grid as `fitted`: uint8, of each voxel the class that has most of it.

    The nearest voxel would do so as well, but of two equally near ones takes always the same side:
    a mask half a voxel beside its scan, wherever the voxels double.

    Args:
      mask: (D, H, W) uint8; 0 is the background, which is also where it does not reach.
      spacing, voxel, shape: see `fitted`.
    """
    found = np.zeros(shape, np.uint8)
    most = np.full(shape, 0.0, np.float32)
    for kind in np.unique(mask):
        share = fitted((mask == kind).astype(np.float32), spacing, voxel, shape)
        more = share > most
        found[more], most[more] = kind, share[more]
    return found


def holding_edge(
    sizes: np.ndarray, spacings: np.ndarray, shape: tuple[int, ...], share: float = 0.9
) -> float:
    """The edge of cubic voxels, mm, with which `share` of the scans lie within `shape` as a whole.

    One edge for all of a set, so that what is larger in one of them stays larger.

    Args:
      sizes: (n, 3) voxels.
      spacings: (n, 3) mm.
      shape: (D, H, W).
    """
    edges = (sizes * spacings / np.asarray(shape)).max(axis=1)
    return float(np.quantile(edges, share, method="inverted_cdf"))


def to_uint8(volume: np.ndarray) -> np.ndarray:
    """(D, H, W) in [0, 1] -> (D, H, W, 1) pixels."""
    return np.rint(volume * 255)[..., None].astype(np.uint8)
