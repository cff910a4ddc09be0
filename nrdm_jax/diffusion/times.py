"""Distributions of training times. One key an example, so that a draw does not depend on the
batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nrdm_jax.signatures import Array

# keys (B,) -> t (B,) in [t_min, t_max]
TimesFn = Callable[[Array], Array]


def uniform(t_min: float, t_max: float) -> TimesFn:
    """t ~ U[t_min, t_max)."""
    return jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32, t_min, t_max))


def logit_normal(t_min: float, t_max: float, mean: float, std: float) -> TimesFn:
    """logit(u) ~ N(mean, std^2), t = t_min + (t_max - t_min) u (Esser et al., arXiv 2403.03206, eq.
    19).

    A positive mean is noisier.
    """

    def draw(key: Array) -> Array:
        u = jax.nn.sigmoid(mean + std * jax.random.normal(key, (), jnp.float32))
        return t_min + (t_max - t_min) * u

    return jax.vmap(draw)


def make_times(name: str, t_min: float, t_max: float, *, mean: float, std: float) -> TimesFn:
    """The distribution of that name on [t_min, t_max].

    Raises:
      ValueError: there is none.
    """
    if name == "uniform":
        return uniform(t_min, t_max)
    if name == "logit_normal":
        return logit_normal(t_min, t_max, mean, std)
    raise ValueError(f"diffusion.times is {name!r}; choose uniform or logit_normal")
