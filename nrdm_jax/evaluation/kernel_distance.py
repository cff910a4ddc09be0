"""Kernel distance (KID): the squared maximum mean discrepancy of features, unbiased, whatever the
number of examples (Bińkowski et al., arXiv 1801.01401)."""

import numpy as np


def kernel_distance(
    a: np.ndarray, b: np.ndarray, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation over random subsets (section 4.3 there).

    Args:
      a, b: features (n, F) and (m, F).
      subsets: how many; one, where `size` takes in all of both sets.
      size: examples of each set in a subset, at most all.
      seed: of the choice.

    Raises:
      ValueError: a set has fewer than two features.
    """
    size = min(size, len(a), len(b))
    if size < 2:
        raise ValueError(f"a kernel distance needs at least 2 examples, got {len(a)} and {len(b)}")
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if size == len(a) == len(b):
        subsets = 1
    draw = np.random.default_rng(seed)
    values = [
        _unbiased(
            a[draw.choice(len(a), size, replace=False)], b[draw.choice(len(b), size, replace=False)]
        )
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def _unbiased(a: np.ndarray, b: np.ndarray) -> float:
    """With the kernel (x . y / F + 1)^3 (eq. 4 there)."""

    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1.0) ** 3

    def within(x):
        k = kernel(x, x)
        return (k.sum() - np.trace(k)) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())
