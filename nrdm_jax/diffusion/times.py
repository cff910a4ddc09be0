"""Distributions of training times. One key an example, so that a draw does not depend on the
batch."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from nrdm_jax.diffusion.schedules import STEPS, Path, time_at
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


def log_normal(path: Path, mean: float, std: float) -> TimesFn:
    """log(sigma / alpha) ~ N(mean, std^2) (Karras et al., arXiv 2206.00364, table 1, P_mean and
    P_std), what is outside [t_min, t_max] at its ends."""

    def draw(key: Array) -> Array:
        return mean + std * jax.random.normal(key, (), jnp.float32)

    return lambda keys_B: time_at(path, -jax.vmap(draw)(keys_B))


def mode(t_min: float, t_max: float, scale: float) -> TimesFn:
    """t = 1 - u - scale (cos^2(pi u / 2) - 1 + u), u uniform (Esser et al., arXiv 2403.03206, eq.
    20): a positive scale, of at most 2 / (pi - 2), prefers the middle."""

    def draw(key: Array) -> Array:
        u = jax.random.uniform(key, (), jnp.float32)
        t = 1.0 - u - scale * (jnp.cos(0.5 * jnp.pi * u) ** 2 - 1.0 + u)
        return t_min + (t_max - t_min) * jnp.clip(t, 0.0, 1.0)

    return jax.vmap(draw)


def discrete(t_min: float, t_max: float) -> TimesFn:
    """The whole thousandths in [t_min, t_max], each as likely: DDPM's training.

    Raises:
      ValueError: there is none.
    """
    low, high = math.ceil(t_min * STEPS - 1e-3), math.floor(t_max * STEPS + 1e-3)
    if low > high:
        raise ValueError(
            f"diffusion.times is discrete, and no whole thousandth is in [{t_min:g}, {t_max:g}]; "
            "choose uniform, or other diffusion.t_min and t_max"
        )
    return jax.vmap(lambda key: jax.random.randint(key, (), low, high + 1) / STEPS)


TIMES = ("uniform", "logit_normal", "log_normal", "mode", "discrete")


def make_times(name: str, path: Path, *, mean: float, std: float, mode_scale: float) -> TimesFn:
    """The distribution of that name on the path's [t_min, t_max].

    Args:
      name: of `TIMES`.
      path: its own `shift` is in it.
      mean, std: of logit_normal and log_normal.
      mode_scale: of mode.

    Raises:
      ValueError: there is none.
    """
    ends = path.t_min, path.t_max
    if name == "uniform":
        return uniform(*ends)
    if name == "logit_normal":
        return logit_normal(*ends, mean, std)
    if name == "log_normal":
        return log_normal(path, mean, std)
    if name == "mode":
        return mode(*ends, mode_scale)
    if name == "discrete":
        return discrete(*ends)
    raise ValueError(f"diffusion.times is {name!r}; choose one of {', '.join(TIMES)}")
