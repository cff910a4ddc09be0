"""A convolution that is fast in a scan on every platform."""

import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from nrdm_jax.signatures import Array

WINDOW = 3  # taps along each axis


class Convolution(nn.Module):
    """(B, *S, E) -> (B, *ceil(S / stride), width): a window of 3 along each axis, padded with zeros
    as "SAME"; bias.

    Attributes:
      width: output channels.
      stride: along each axis.
      kernel_init: of the kernel (3, ..., 3, E, width).
      dtype: compute type.
      looped: whether it is in a scan, where XLA's own form is slow on a CPU; outside of one that is
        more than twice as fast as the other (a train step of configs/autoencoder32.py: 0.5 and 1.2
        s).
    """

    width: int
    stride: int = 1
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32
    looped: bool = True

    @nn.compact
    def __call__(self, u: Array) -> Array:
        shape = (*(WINDOW,) * (u.ndim - 2), u.shape[-1], self.width)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        u, kernel, bias = (x.astype(self.dtype) for x in (u, kernel, bias))
        padding = [_same(size, self.stride) for size in u.shape[1:-1]]

        def convolve(u: Array, kernel: Array) -> Array:
            u = jnp.pad(u, ((0, 0), *padding, (0, 0)))
            return lax.platform_dependent(
                u,
                kernel,
                cpu=lambda u, kernel: sum_of_products(u, kernel, self.stride),
                default=lambda u, kernel: native(u, kernel, self.stride),
            )

        if self.looped:
            # Nothing but its input is kept for the backward pass, as of any convolution.
            y = jax.checkpoint(convolve, prevent_cse=False)(u, kernel)
        else:
            y = native(u, kernel, self.stride, padding)
        return y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


def native(
    u: Array, kernel: Array, stride: int = 1, padding: str | list[tuple[int, int]] = "VALID"
) -> Array:
    """The convolution of an input (B, *S, E), by default a padded one, with (*window, E, F), by
    XLA."""
    axes = "DHW"[-(u.ndim - 2) :]
    names = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    strides = (stride,) * (u.ndim - 2)
    return lax.conv_general_dilated(u, kernel, strides, padding, dimension_numbers=names)


def sum_of_products(u: Array, kernel: Array, stride: int = 1) -> Array:
    """The same as a matrix product for each tap of the window, added up in float32.

    In a loop, XLA's CPU backend has no fast form of a convolution's derivative: there this is more
    than ten times as fast (benchmarks/convolution.py).
    """
    window = kernel.shape[:-2]
    sizes = [(n - k) // stride + 1 for n, k in zip(u.shape[1:-1], window, strict=True)]
    total = jnp.zeros((u.shape[0], *sizes, kernel.shape[-1]), jnp.float32)
    for tap in itertools.product(*map(range, window)):
        start = (0, *tap, 0)
        last = (i + stride * (n - 1) + 1 for i, n in zip(tap, sizes, strict=True))
        seen = lax.slice(
            u, start, (u.shape[0], *last, u.shape[-1]), (1, *(stride,) * len(sizes), 1)
        )
        total = total + jnp.matmul(seen, kernel[tap], preferred_element_type=jnp.float32)
    return total.astype(u.dtype)


def _same(size: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis, so that ceil(size / stride) windows fit."""
    missing = max((-(-size // stride) - 1) * stride + WINDOW - size, 0)
    return missing // 2, missing - missing // 2
