"""Fixed positions of tokens on a grid of any number of axes.

A grid of another size than the reference has its tokens evenly over the same range (as in position
interpolation, Chen et al., arXiv 2306.15595), so that a picture's borders, and a clip's first and
last frame, keep the positions that a network has learned.
"""

import functools

import jax.numpy as jnp
import numpy as np

from nrdm_jax.signatures import Array


def coordinates(grid: tuple[int, ...], reference: tuple[int, ...] = ()) -> list[np.ndarray]:
    """Of all tokens on each axis, (*grid): 0, 1, 2, ...; with a reference grid, evenly from its
    first token to its last, i * (reference - 1) / (size - 1), and a single token in the middle.

    Raises:
      ValueError: the reference has another number of axes, or one token where the grid has more:
        they would all be at one place.
    """
    reference = reference or grid
    if len(reference) != len(grid):
        raise ValueError(f"a grid {grid} has no positions on the axes of {reference}")
    axes = []
    for size, span in zip(grid, reference, strict=True):
        if span == 1 and size > 1:
            raise ValueError(f"{size} tokens have no places of their own on an axis of {reference}")
        middle = np.full(1, (span - 1) / 2)
        axes.append(middle if size == 1 else np.linspace(0, span - 1, size))
    return list(np.meshgrid(*axes, indexing="ij"))


def sincos(grid: tuple[int, ...], width: int, reference: tuple[int, ...] = ()) -> np.ndarray:
    """(prod(grid), width) float32: each axis has an equal share of sines and cosines.

    omega_j = 10000^(-j/J), J frequencies an axis (Vaswani et al., arXiv 1706.03762, section 3.5; on
    two axes, MAE's and DiT's embedding). Where width is no multiple of twice the number of axes,
    the last channels are zero.

    Raises:
      ValueError: the width has no room for one frequency an axis; as `coordinates`.
    """
    frequencies = width // (2 * len(grid))
    if frequencies == 0:
        raise ValueError(f"width {width} is too small for positions on {len(grid)} axes")
    omega = 10_000.0 ** -(np.arange(frequencies) / frequencies)
    parts = []
    for coordinate in coordinates(grid, reference):
        angle = coordinate.reshape(-1, 1) * omega[None, :]
        parts += [np.sin(angle), np.cos(angle)]
    table = np.concatenate(parts, axis=1)
    return np.pad(table, ((0, 0), (0, width - table.shape[1]))).astype(np.float32)


@functools.lru_cache
def rotary(grid: tuple[int, ...], head_width: int, reference: tuple[int, ...] = ()) -> np.ndarray:
    """(prod(grid), head_width // 2) float32: the angles by which `rotate` turns pairs of channels.

    Each axis turns an equal share of the pairs, by its coordinate times omega_j = 10000^(-j/J) (Su
    et al., arXiv 2104.09864, eq. 15, an axis at a time); pairs that are left over are not turned.

    Raises:
      ValueError: a head has no pair for each axis; as `coordinates`.
    """
    frequencies = head_width // (2 * len(grid))
    if frequencies == 0:
        raise ValueError(f"heads of {head_width} channels cannot be rotated on {len(grid)} axes")
    omega = 10_000.0 ** -(np.arange(frequencies) / frequencies)
    places = coordinates(grid, reference)
    table = np.concatenate([c.reshape(-1, 1) * omega[None, :] for c in places], axis=1)
    return np.pad(table, ((0, 0), (0, head_width // 2 - table.shape[1]))).astype(np.float32)


def rotate(x_BHNK: Array, angles: np.ndarray) -> Array:
    """Turns the pairs (x_j, x_{j + K/2}) of each token by its angles, (M, K // 2) with M <= N.

    Of more tokens than angles the first ones, which are no patches, stay. Then q k^T depends on the
    difference of places only.
    """
    extra = x_BHNK.shape[-2] - angles.shape[0]
    table = np.pad(angles, ((extra, 0), (0, 0)))
    table = table.reshape((1,) * (x_BHNK.ndim - 2) + table.shape)
    cos, sin = (f(table).astype(np.float32) for f in (np.cos, np.sin))
    half = angles.shape[1]
    a, b, rest = x_BHNK[..., :half], x_BHNK[..., half : 2 * half], x_BHNK[..., 2 * half :]
    turned = jnp.concatenate([a * cos - b * sin, a * sin + b * cos, rest], axis=-1)
    return turned.astype(x_BHNK.dtype)
