"""The best linear denoiser (Wiener filter) of a data set: the yardstick that needs no training."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from nrdm_jax.signatures import Array


class LinearDenoiser(NamedTuple):
    """For data of mean m and covariance U diag(l) U^T, in D dimensions.

    Attributes:
      mean: (D,).
      basis: U, (D, R), orthonormal columns.
      variances: l, (R,); outside the span of U the data do not vary.
    """

    mean: Array
    basis: Array
    variances: Array


def fit(x: np.ndarray) -> LinearDenoiser:
    """Mean and covariance of examples (n, *S, C), any float range.

    Through the eigenvectors of the smaller of the covariance and the Gram matrix, in float64.
    """
    flat = x.reshape(len(x), -1).astype(np.float64)
    mean = flat.mean(axis=0)
    flat -= mean
    if flat.shape[1] <= flat.shape[0]:
        variances, basis = scipy.linalg.eigh(flat.T @ flat / len(flat), driver="evd")
    else:
        variances, left = scipy.linalg.eigh(flat @ flat.T / len(flat), driver="evd")
        kept = variances > variances[-1] * 1e-12
        variances, left = variances[kept], left[:, kept]
        basis = flat.T @ left / np.sqrt(variances * len(flat))
    return LinearDenoiser(*(jnp.asarray(a, jnp.float32) for a in
                            (mean, basis, np.maximum(variances, 0.0))))  # fmt: skip


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
    total = alpha**2 * denoiser.variances + sigma**2
    x0 = denoiser.mean[None, :] + matmul(
        inside * (alpha * denoiser.variances / total)[None, :], denoiser.basis.T
    )
    x0 = x0.reshape(x_t.shape)
    return x0, (x_t - alpha * x0) / sigma
