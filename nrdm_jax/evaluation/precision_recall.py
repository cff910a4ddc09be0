"""Improved precision and recall: the share of samples within the data's manifold, and of data
within the samples' (Kynkäänniemi et al., arXiv 1904.06991)."""

from collections.abc import Iterator

import numpy as np


def precision_recall(
    samples: np.ndarray, data: np.ndarray, *, neighbours: int = 3, block: int = 2048
) -> tuple[float, float]:
    """A set's manifold is the union of balls around its features, each up to its k-th neighbour in
    the set (eq. 1 and 2 there).

    Args:
      samples, data: features (n, F) and (m, F).
      neighbours: k.
      block: rows of distances held at once.

    Raises:
      ValueError: a set has no more than k features.
    """
    if min(len(samples), len(data)) <= neighbours:
        raise ValueError(
            f"precision and recall with {neighbours} neighbours need more examples than "
            f"{len(samples)} and {len(data)}"
        )
    samples, data = np.asarray(samples, np.float64), np.asarray(data, np.float64)
    return (
        _covered(samples, data, _radii(data, neighbours, block), block),
        _covered(data, samples, _radii(samples, neighbours, block), block),
    )


def _radii(x: np.ndarray, neighbours: int, block: int) -> np.ndarray:
    """Squared distance of each to its k-th neighbour: the nearest is itself."""
    rows = [np.partition(d, neighbours, axis=1)[:, neighbours] for d in _squares(x, x, block)]
    return np.concatenate(rows)


def _covered(queries: np.ndarray, centres: np.ndarray, radii: np.ndarray, block: int) -> float:
    inside = [(d <= radii[None, :]).any(axis=1) for d in _squares(queries, centres, block)]
    return float(np.mean(np.concatenate(inside)))


def _squares(a: np.ndarray, b: np.ndarray, block: int) -> Iterator[np.ndarray]:
    """Squared distances, (block, m) at a time."""
    norms = np.sum(b**2, axis=1)
    for start in range(0, len(a), block):
        part = a[start : start + block]
        distances = np.sum(part**2, axis=1)[:, None] + norms[None, :] - 2 * part @ b.T
        yield np.maximum(distances, 0.0)
