"""A guess of the loss by the noise level, for a loss in which all levels weigh alike (Karras et
al., EDM2, arXiv 2312.02696, section 2.2 and appendix B.2; Kendall et al., arXiv 1705.07115)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nrdm_jax.signatures import Array

# At the ends of a flow the log SNR is infinite: beyond this all levels are one.
LARGEST = 20.0


class Uncertainty(nn.Module):
    """log SNR (B,) -> u (B,), the logarithm of the loss to be expected there; 0 at the start.

    u = w . f(c) + b, f_i(c) = cos(2 pi omega_i c + phase) sqrt(2 / n): a linear layer on Fourier
    features of c = log(sigma / alpha) / 4, EDM's c_noise, as EDM2's `logvar`. There the frequencies
    omega are drawn from N(0, 1); here they are quantiles of it, so that there is nothing to keep.

    Attributes:
      features: n.
    """

    features: int = 128

    @nn.compact
    def __call__(self, log_snr_B: Array) -> Array:
        half = self.features // 2
        # Of |omega|, the sign goes with the phases: a cosine and a sine of each.
        omega = jax.scipy.special.ndtri(0.5 + 0.5 * (jnp.arange(half) + 0.5) / half)
        c_B = -jnp.clip(log_snr_B, -LARGEST, LARGEST) / 8.0
        angle = np.float32(2 * np.pi) * c_B[:, None] * omega[None, :]
        f_BF = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1) / np.float32(half**0.5)
        return nn.Dense(1, kernel_init=nn.initializers.zeros, name="linear")(f_BF)[:, 0]
