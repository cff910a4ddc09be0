"""Guidance: wrappers from one DenoiseFn to another.

Every prediction is affine in x0 at given x_t and t, so that combining outputs is combining
estimates of x0. What a network puts out in further channels, a learned variance, is no such
prediction: it stays what the network said with what is given, as in DiT.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nrdm_jax.diffusion.predictions import target, to_x0_eps
from nrdm_jax.diffusion.schedules import Path, broadcast
from nrdm_jax.signatures import Array, DenoiseFn

# t (B,) -> scale (B,) of the guidance
ScaleFn = Callable[[Array], Array]


def within(path: Path, scale: float, low: float, high: float) -> ScaleFn:
    """`scale` where low <= sigma/alpha <= high, else 1: guidance where it helps and does not narrow
    (Kynkäänniemi et al., arXiv 2404.07724, eq. 5)."""

    def of(t_B: Array) -> Array:
        sigma, alpha = path.sigma(t_B), path.alpha(t_B)
        inside = (sigma >= low * alpha) & (sigma <= high * alpha)
        return jnp.where(inside, scale, 1.0)

    return of


def _with_rest(prediction: Array, output: Array) -> Array:
    """The output, with another prediction in its first channels."""
    return jnp.concatenate([prediction, output[..., prediction.shape[-1] :]], axis=-1)


def classifier_free(
    denoise: DenoiseFn,
    nothing: Callable[[Any], Any],
    scale: float | ScaleFn,
    rescale: float = 0.0,
) -> DenoiseFn:
    """unconditional + scale * (conditional - unconditional), both in one batch.

    Ho & Salimans (arXiv 2207.12598), eq. 6, with scale = 1 + w. Scale 1 is `denoise` itself.

    Args:
      denoise: the network.
      nothing: what is given -> that without what the guidance is towards.
      scale: a number, or one that depends on the time.
      rescale: share of the result whose standard deviation, of an example, is brought back to that
        of the conditional output (Lin et al., arXiv 2305.08891, eq. 15 and 16).
    """
    if scale == 1.0:
        return denoise

    def guided(x_t: Array, t_B: Array, given: Any) -> Array:
        # Pairs side by side (…, conditional i, unconditional i, …): a sharded batch stays where it
        # is.
        def paired(a: Array, b: Array) -> Array:
            return jnp.stack([a, b], axis=1).reshape(2 * a.shape[0], *a.shape[1:])

        both = jax.tree.map(paired, given, nothing(given))
        output = denoise(paired(x_t, x_t), paired(t_B, t_B), both)
        output = output.reshape(x_t.shape[0], 2, *output.shape[1:])
        whole, channels = output[:, 0], x_t.shape[-1]
        conditional, unconditional = whole[..., :channels], output[:, 1, ..., :channels]
        factor = broadcast(scale(t_B), x_t) if callable(scale) else scale
        out = unconditional + factor * (conditional - unconditional)
        if rescale:
            axes = tuple(range(1, out.ndim))
            own, wanted = (jnp.std(o, axis=axes, keepdims=True) for o in (out, conditional))
            ratio = wanted / jnp.maximum(own, 1e-8)
            out = rescale * ratio * out + (1.0 - rescale) * out
        return _with_rest(out, whole)

    return guided


def autoguidance(denoise: DenoiseFn, weaker: DenoiseFn, scale: float | ScaleFn) -> DenoiseFn:
    """weaker + scale * (denoise - weaker), both with what is given: away from what a worse version
    of the same network does (Karras et al., arXiv 2406.02507, eq. 3)."""

    def guided(x_t: Array, t_B: Array, given: Any) -> Array:
        whole = denoise(x_t, t_B, given)
        strong, weak = (y[..., : x_t.shape[-1]] for y in (whole, weaker(x_t, t_B, given)))
        factor = broadcast(scale(t_B), x_t) if callable(scale) else scale
        return _with_rest(weak + factor * (strong - weak), whole)

    return guided


def dynamic_thresholding(
    denoise: DenoiseFn, path: Path, prediction: str, quantile: float
) -> DenoiseFn:
    """The x0 of an output clipped to [-s, s] and divided by s, s that quantile of its absolute
    values and at least 1: for pixels in [-1, 1] (Saharia et al., arXiv 2205.11487, section 2.3)."""

    def thresholded(x_t: Array, t_B: Array, given: Any) -> Array:
        output = denoise(x_t, t_B, given)
        x0, _ = to_x0_eps(path, prediction, output[..., : x_t.shape[-1]], x_t, t_B)
        sizes = jnp.abs(x0).reshape(x0.shape[0], -1)
        s = broadcast(jnp.maximum(jnp.quantile(sizes, quantile, axis=1), 1.0), x0)
        x0 = jnp.clip(x0, -s, s) / s
        sigma, alpha = (broadcast(f(t_B), x_t) for f in (path.sigma, path.alpha))
        clipped = target(path, prediction, x0, (x_t - alpha * x0) / sigma, t_B)
        return _with_rest(clipped, output)

    return thresholded
