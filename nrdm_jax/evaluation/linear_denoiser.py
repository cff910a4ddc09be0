"""The best linear denoiser (Wiener filter) of a data set: the yardstick that needs no training."""

import functools
import itertools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from nrdm_jax.evaluation.frechet import Moments
from nrdm_jax.signatures import Array

# Of memory, with which one is still fitted: to 20,000 numbers an example, however many examples, or
# to 8,100 examples of 49,152 numbers.
MOST_BYTES = 9 * 2**30


class LinearDenoiser(NamedTuple):
    """For data of mean m and covariance U diag(l) U^T + o (I - U U^T), in D dimensions.

    Attributes:
      mean: (D,).
      basis: U, (D, R), orthonormal columns.
      variances: l, (R,).
      outside: o, (), along each direction outside the span of U.
    """

    mean: Array
    basis: Array
    variances: Array
    outside: Array


def bytes_of_fit(count: int, dimensions: int) -> int:
    """Memory that `fit` takes at most, for so many examples of so many numbers.

    The eigenvectors of an (m, m) matrix take two more of its size (LAPACK's syevd); the smaller of
    the two ways is taken, see `fit`: of the Gram matrix, the examples and the basis are held beside
    it. In float64, and the result in float32.
    """
    if count < dimensions:
        return 8 * 3 * count**2 + 20 * count * dimensions
    return 8 * 3 * dimensions**2


def fit(blocks: Iterable[np.ndarray], count: int) -> LinearDenoiser:
    """Mean and covariance of examples, any float range.

    Through the eigenvectors of the smaller of the covariance and the Gram matrix, in float64; what
    is held is that matrix, and where the examples are fewer than their dimensions, all of them
    (`bytes_of_fit`). Fewer examples show nothing of most directions, in which others vary all the
    same: they are given the variance, alike in all of them, that each example has outside the span
    of the others. With none, the filter erases there what it sees: fitted to 225 scans of 49,152
    voxels its held-out loss is 1.42, with it 0.42.

    Args:
      blocks: of the examples, (n, *S, C) each.
      count: of all examples.
    """
    flats = (block.reshape(len(block), -1).astype(np.float64) for block in blocks)
    first = next(flats)
    if first.shape[1] <= count:
        moments = Moments()
        for block in itertools.chain([first], flats):
            moments.add(block)
        mean, covariance = moments.mean, moments.covariance
        del moments  # of the covariance's size
        covariance *= 1 - 1 / count
        variances, basis = _eigenvectors(covariance)
        outside = 0.0  # of no direction
    else:
        flat = np.empty((count, first.shape[1]))
        filled = 0
        for block in itertools.chain([first], flats):
            flat[filled : filled + len(block)] = block
            filled += len(block)
        assert filled == count
        mean = flat.mean(axis=0)
        flat -= mean
        variances, left = _eigenvectors(flat @ flat.T / count)
        kept = variances > variances[-1] * 1e-12
        variances, left = variances[kept], left[:, kept]
        basis = flat.T @ (left / np.sqrt(variances * count))
        # The height of a corner of a simplex over its other corners: one over the length of the
        # gradient of its barycentric coordinate, a row of the pseudo-inverse of the corners.
        heights = 1 / np.sum(left**2 / (variances * count)[None, :], axis=1)
        outside = heights.mean() / (flat.shape[1] - len(variances) + 1)
    return LinearDenoiser(*(jnp.asarray(a, jnp.float32) for a in
                            (mean, basis, np.maximum(variances, 0.0), outside)))  # fmt: skip


def _eigenvectors(symmetric: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and vectors, in the place of the matrix: LAPACK takes columns first, and would
    copy rows."""
    return scipy.linalg.eigh(symmetric.T, driver="evd", overwrite_a=True)


def estimate_x0(
    denoiser: LinearDenoiser, x_t: Array, alpha: Array, sigma: Array
) -> tuple[Array, Array]:
    """The linear estimates of least mean square error of x0 and eps, given x_t = alpha x0 + sigma
    eps.

    x0 = m + alpha C (alpha^2 C + sigma^2 I)^-1 (x_t - alpha m), eps likewise
    sigma (alpha^2 C + sigma^2 I)^-1 (x_t - alpha m) (Wiener, 1949; Kay, Estimation Theory, eq.
    12.27).

    Args:
      denoiser: fitted to examples of the same shape.
      x_t: (B, *S, C).
      alpha, sigma: (); sigma > 0.
    """
    flat = x_t.reshape(x_t.shape[0], -1)
    centred = flat - alpha * denoiser.mean[None, :]
    matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    inside = matmul(centred, denoiser.basis)
    variances, outside = denoiser.variances, denoiser.outside
    gains = alpha * variances / (alpha**2 * variances + sigma**2)
    gain = alpha * outside / (alpha**2 * outside + sigma**2)
    along = matmul(inside * (gains - gain)[None, :], denoiser.basis.T)
    x0 = denoiser.mean[None, :] + gain * centred + along
    x0 = x0.reshape(x_t.shape)
    return x0, (x_t - alpha * x0) / sigma
