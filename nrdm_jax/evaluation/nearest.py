"""Distance of samples to their nearest training examples: does a model copy, or make?"""

from collections.abc import Iterable

import numpy as np


def nearest(queries: np.ndarray, blocks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """For each query the root-mean-square distance to its nearest reference, and that one's index.

    Args:
      queries: (m, *S, C) float in [-1, 1].
      blocks: of references, (n, *S, C) each, the same shape of example: one at a time is held.

    Returns:
      (m,) distances, in units of the pixel range [-1, 1]; (m,) indices.
    """
    q = queries.reshape(len(queries), -1).astype(np.float32)
    best = np.full(len(q), np.inf, np.float32)
    index = np.zeros(len(q), np.int64)
    start = 0
    for block in blocks:
        r = block.reshape(-1, q.shape[1]).astype(np.float32)
        # |q - r|^2 = |q|^2 - 2 q.r + |r|^2; |q|^2 is the same for all r.
        partial = np.sum(r**2, axis=1)[None, :] - 2.0 * q @ r.T
        winner = np.argmin(partial, axis=1)
        # The winners again by differences: the expansion above loses what is nearly equal.
        exact = np.mean((q - r[winner]) ** 2, axis=1)
        better = exact < best
        best[better], index[better] = exact[better], start + winner[better]
        start += len(r)
    return np.sqrt(best), index
