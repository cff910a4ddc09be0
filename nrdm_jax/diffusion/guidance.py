"""Guidance: wrappers from one DenoiseFn to another."""

import jax.numpy as jnp

from nrdm_jax.signatures import Array, DenoiseFn


def classifier_free(denoise: DenoiseFn, null_label: int, scale: float) -> DenoiseFn:
    """unconditional + scale * (conditional - unconditional), both in one batch.

    Ho & Salimans (arXiv 2207.12598), eq. 6, with scale = 1 + w. Every prediction is affine in x0 at
    given x_t and t, so combining outputs is combining estimates of x0. Scale 1 is `denoise` itself.
    """
    if scale == 1.0:
        return denoise

    def guided(x_t: Array, t_B: Array, label_B: Array) -> Array:
        # Pairs side by side (…, conditional i, unconditional i, …): a sharded batch stays where it
        # is.
        def paired(a: Array, b: Array) -> Array:
            return jnp.stack([a, b], axis=1).reshape(2 * a.shape[0], *a.shape[1:])

        output = denoise(
            paired(x_t, x_t), paired(t_B, t_B), paired(label_B, jnp.full_like(label_B, null_label))
        )
        output = output.reshape(x_t.shape[0], 2, *output.shape[1:])
        conditional, unconditional = output[:, 0], output[:, 1]
        return unconditional + scale * (conditional - unconditional)

    return guided
