"""Paths between data and noise: x_t = alpha(t) x0 + sigma(t) eps, t = 0 data, t = 1 noise.

A path is alpha, sigma and their derivatives; everything else (log-SNR, drift, velocity) is derived.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from nrdm_jax.signatures import Array

ScalarFn = Callable[[Array], Array]


@dataclasses.dataclass(frozen=True)
class Path:
    """Attributes:
    name: its key in `PATHS`.
    alpha, sigma: of t, float32, any shape.
    alpha_dot, sigma_dot: their derivatives with respect to t.
    t_min, t_max: training times; the functions and all conversions are finite between them.
    """

    name: str
    alpha: ScalarFn
    sigma: ScalarFn
    alpha_dot: ScalarFn
    sigma_dot: ScalarFn
    t_min: float
    t_max: float


def rectified_flow() -> Path:
    """alpha = 1 - t, sigma = t (Liu et al., arXiv 2209.03003; Lipman et al., arXiv 2210.02747)."""
    return Path(
        "rectified_flow",
        alpha=lambda t: 1.0 - t,
        sigma=lambda t: t,
        alpha_dot=lambda t: -jnp.ones_like(t),
        sigma_dot=lambda t: jnp.ones_like(t),
        t_min=0.0,
        t_max=1.0,
    )


def ddpm_linear(beta_min: float = 0.1, beta_max: float = 20.0) -> Path:
    """log alpha = -(beta_max - beta_min) t^2 / 4 - beta_min t / 2, sigma^2 = 1 - alpha^2.

    Song et al. (arXiv 2011.13456), eq. 33: DDPM's linear schedule in continuous time. sigma_dot
    grows without bound as t -> 0, so training stops at 1e-3.
    """

    def log_alpha(t):
        return -0.25 * (beta_max - beta_min) * t**2 - 0.5 * beta_min * t

    def sigma(t):
        return jnp.sqrt(-jnp.expm1(2.0 * log_alpha(t)))

    def rate(t):  # -d log alpha / dt
        return 0.5 * ((beta_max - beta_min) * t + beta_min)

    return Path(
        "ddpm_linear",
        alpha=lambda t: jnp.exp(log_alpha(t)),
        sigma=sigma,
        alpha_dot=lambda t: -rate(t) * jnp.exp(log_alpha(t)),
        # From alpha^2 + sigma^2 = 1: sigma sigma_dot = -alpha alpha_dot.
        sigma_dot=lambda t: rate(t) * jnp.exp(2.0 * log_alpha(t)) / sigma(t),
        t_min=1e-3,
        t_max=1.0,
    )


def cosine() -> Path:
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2).

    Nichol & Dhariwal (arXiv 2102.09672), eq. 17, with s = 0: their offset keeps the first of a
    thousand discrete steps from vanishing and has no purpose in continuous time, where it would
    make sigma(0) > 0. alpha(1) = 0 there, so training stops at 0.9999 (alpha = 1.6e-4).
    """
    half_pi = np.float32(np.pi / 2)
    return Path(
        "cosine",
        alpha=lambda t: jnp.cos(half_pi * t),
        sigma=lambda t: jnp.sin(half_pi * t),
        alpha_dot=lambda t: -half_pi * jnp.sin(half_pi * t),
        sigma_dot=lambda t: half_pi * jnp.cos(half_pi * t),
        t_min=1e-4,
        t_max=0.9999,
    )


PATHS: dict[str, Callable[[], Path]] = {
    "rectified_flow": rectified_flow,
    "ddpm_linear": ddpm_linear,
    "cosine": cosine,
}


def make_path(name: str) -> Path:
    """The path of that name.

    Raises:
      ValueError: there is none.
    """
    if name not in PATHS:
        raise ValueError(f"diffusion.path is {name!r}; choose one of {', '.join(PATHS)}")
    return PATHS[name]()


def broadcast(values_B: Array, x: Array) -> Array:
    """(B,) -> (B, 1, ..., 1), to go with x (B, *S, C)."""
    return values_B.reshape(values_B.shape[0], *(1,) * (x.ndim - 1))


def add_noise(path: Path, x0: Array, eps: Array, t_B: Array) -> Array:
    """x_t = alpha(t) x0 + sigma(t) eps, for x0 and eps (B, *S, C)."""
    return broadcast(path.alpha(t_B), x0) * x0 + broadcast(path.sigma(t_B), x0) * eps


def log_snr(path: Path, t: Array) -> Array:
    """log(alpha^2 / sigma^2), decreasing in t."""
    return 2.0 * (jnp.log(path.alpha(t)) - jnp.log(path.sigma(t)))


def time_at_log_snr(path: Path, level: float) -> float:
    """The t in [t_min, t_max] with that log-SNR, by bisection to float32's last bit.

    Raises:
      ValueError: the path does not reach the level within its training times.
    """

    def difference(t: float) -> float:  # > 0 while the level is not reached
        alpha, sigma = float(path.alpha(jnp.float32(t))), float(path.sigma(jnp.float32(t)))
        return alpha - sigma * np.exp(level / 2)

    low, high = path.t_min, path.t_max
    if difference(low) < 0 or difference(high) > 0:
        raise ValueError(
            f"evaluate.log_snr: level {level:g} is outside what diffusion.path={path.name} reaches "
            f"for t in [{path.t_min}, {path.t_max}]; choose one nearer to 0"
        )
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if difference(middle) > 0 else (low, middle)
    return float(np.float32(0.5 * (low + high)))


def drift_and_diffusion(path: Path, t: Array) -> tuple[Array, Array]:
    """f and g^2 of the forward SDE dx = f x dt + g dw that has the path's marginals.

    f = alpha'/alpha, g^2 = d(sigma^2)/dt - 2 f sigma^2 (Kingma et al., arXiv 2107.00630, eq. 29
    ff).
    """
    f = path.alpha_dot(t) / path.alpha(t)
    return f, 2.0 * path.sigma(t) * path.sigma_dot(t) - 2.0 * f * path.sigma(t) ** 2
