"""Fréchet distance of two sets of features, each taken as a Gaussian (Heusel et al., arXiv
1706.08500)."""

import dataclasses

import numpy as np
import scipy.linalg


@dataclasses.dataclass
class Moments:
    """Count, mean and covariance of features that come in batches, in float64.

    Attributes:
      count: of the features seen.
      total: (F,), their sum, each less `shift`.
      square: (F, F), the sum of their outer products, likewise.
      shift: (F,), near the mean, so that the difference of large sums keeps its digits: the mean of
        the first batch.
    """

    count: int = 0
    total: np.ndarray | None = None
    square: np.ndarray | None = None
    shift: np.ndarray | None = None

    def add(self, features: np.ndarray) -> None:
        """Features (n, F) of any float type."""
        x = np.asarray(features, np.float64)
        if not np.all(np.isfinite(x)):
            raise FloatingPointError("a feature is not finite")
        if self.shift is None or self.total is None or self.square is None:
            self.shift = x.mean(axis=0)
            self.total, self.square = np.zeros(x.shape[1]), np.zeros((x.shape[1],) * 2)
        x = x - self.shift
        self.count += len(x)
        self.total += x.sum(axis=0)
        self.square += x.T @ x

    @property
    def mean(self) -> np.ndarray:
        """(F,)."""
        assert self.total is not None and self.shift is not None
        return self.shift + self.total / self.count

    @property
    def covariance(self) -> np.ndarray:
        """(F, F), over count - 1."""
        assert self.total is not None and self.square is not None
        mean = self.total / self.count
        return (self.square - self.count * np.outer(mean, mean)) / (self.count - 1)


def distance(a: Moments, b: Moments) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)).

    The trace of the root is the sum of the roots of the eigenvalues of C^(1/2) C' C^(1/2), which is
    symmetric: unlike the root of the product it stays real where a covariance is singular.

    Raises:
      ValueError: a set has fewer than two features.
    """
    for moments in (a, b):
        if moments.count < 2:
            raise ValueError(f"a Fréchet distance needs at least 2 examples, got {moments.count}")
    values, vectors = scipy.linalg.eigh(a.covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
    inner = scipy.linalg.eigvalsh(root @ b.covariance @ root)
    trace = np.trace(a.covariance) + np.trace(b.covariance)
    apart = np.sum((a.mean - b.mean) ** 2)
    return float(apart + trace - 2 * np.sqrt(np.maximum(inner, 0.0)).sum())
