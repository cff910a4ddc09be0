"""Fixed positions of tokens on a grid of any number of axes."""

import numpy as np


def sincos(grid: tuple[int, ...], width: int) -> np.ndarray:
    """(prod(grid), width) float32: each axis has an equal share of sines and cosines.

    omega_j = 10000^(-j/J), J frequencies an axis (Vaswani et al., arXiv 1706.03762, section 3.5; on
    two axes, MAE's and DiT's embedding). Where width is no multiple of twice the number of axes,
    the last channels are zero.

    Raises:
      ValueError: the width has no room for one frequency an axis.
    """
    frequencies = width // (2 * len(grid))
    if frequencies == 0:
        raise ValueError(f"width {width} is too small for positions on {len(grid)} axes")
    omega = 10_000.0 ** -(np.arange(frequencies) / frequencies)
    coordinates = np.meshgrid(*map(np.arange, grid), indexing="ij")
    parts = []
    for coordinate in coordinates:
        angle = coordinate.reshape(-1, 1) * omega[None, :]
        parts += [np.sin(angle), np.cos(angle)]
    table = np.concatenate(parts, axis=1)
    return np.pad(table, ((0, 0), (0, width - table.shape[1]))).astype(np.float32)
