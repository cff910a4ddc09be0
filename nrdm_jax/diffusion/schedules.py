"""Paths between data and noise: x_t = alpha(t) x0 + sigma(t) eps, t = 0 data, t = 1 noise.

A path is alpha, sigma and their derivatives; everything else (log-SNR, drift, velocity) is derived.
"""

import dataclasses
from collections.abc import Callable

import jax
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
    sigma_data: standard deviation of the data, where a preconditioning asks for it.
    scaled_input: the network gets x_t / sqrt(sigma_data^2 alpha^2 + sigma^2), see `scaled_input`.
    """

    name: str
    alpha: ScalarFn
    sigma: ScalarFn
    alpha_dot: ScalarFn
    sigma_dot: ScalarFn
    t_min: float
    t_max: float
    sigma_data: float = 1.0
    scaled_input: bool = False


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


STEPS = 1000  # of discrete time


def ddpm_discrete() -> Path:
    """alpha^2 at t = i / 1000, i = 0 ... 999, is the product of 1 - beta_j, j = 0 ... i, with betas
    even from 1e-4 to 0.02 (Ho et al., arXiv 2006.11239, section 4): what DiT's published weights
    were trained on. Between those times log alpha is linear in t.
    """
    log_bar = np.cumsum(np.log1p(-np.linspace(1e-4, 0.02, STEPS)))
    log_alpha = jnp.asarray(0.5 * log_bar, jnp.float32)
    slopes = jnp.asarray(np.diff(0.5 * log_bar) * STEPS, jnp.float32)

    def log_alpha_at(t):
        i = jnp.clip(jnp.floor(t * STEPS + 1e-3).astype(jnp.int32), 0, STEPS - 2)
        return log_alpha[i] + (t - i / STEPS) * slopes[i], slopes[i]

    def sigma(t):
        return jnp.sqrt(-jnp.expm1(2.0 * log_alpha_at(t)[0]))

    def alpha(t):
        return jnp.exp(log_alpha_at(t)[0])

    return Path(
        "ddpm_discrete",
        alpha=alpha,
        sigma=sigma,
        alpha_dot=lambda t: log_alpha_at(t)[1] * alpha(t),
        # From alpha^2 + sigma^2 = 1: sigma sigma_dot = -alpha alpha_dot.
        sigma_dot=lambda t: -log_alpha_at(t)[1] * alpha(t) ** 2 / sigma(t),
        t_min=0.0,
        t_max=(STEPS - 1) / STEPS,
    )


def cosine() -> Path:
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): GVP of SiT (arXiv 2401.08740) as well.

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


def variance_exploding(sigma_min: float = 0.002, sigma_max: float = 80.0) -> Path:
    """alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t (Song et al., arXiv 2011.13456, eq.
    30), by default in EDM's range (Karras et al., arXiv 2206.00364, table 1), the network's input
    scaled to the data's spread (the same, eq. 7, c_in).

    log sigma, EDM's 4 c_noise, is linear in t. sigma(0) = sigma_min: a sampler ends by taking the
    estimate of x0 there.
    """
    growth = float(np.log(sigma_max / sigma_min))

    def sigma(t):
        return sigma_min * jnp.exp(growth * t)

    return Path(
        "ve",
        alpha=jnp.ones_like,
        sigma=sigma,
        alpha_dot=jnp.zeros_like,
        sigma_dot=lambda t: growth * sigma(t),
        t_min=0.0,
        t_max=1.0,
        scaled_input=True,
    )


def shifted(path: Path, shift: float) -> Path:
    """The path with `shift` times its sigma / alpha at every t: the log-SNR is less by 2 log shift.

    More pixels of the same content need more noise to hide it: with the flow, t becomes
    shift t / (1 + (shift - 1) t) (Esser et al., arXiv 2403.03206, eq. 23); with the cosine, its
    shifted form (Hoogeboom et al., arXiv 2301.11093, eq. 3). alpha + sigma, or alpha^2 + sigma^2,
    stays 1.

    Raises:
      ValueError: neither sum is 1.
    """
    if shift == 1.0:
        return path
    middle = jnp.float32(0.5 * (path.t_min + path.t_max))
    alpha, sigma = float(path.alpha(middle)), float(path.sigma(middle))
    if abs(alpha + sigma - 1) < 1e-5:

        def norm(t):
            return path.alpha(t) + shift * path.sigma(t)

        def norm_dot(t):
            return path.alpha_dot(t) + shift * path.sigma_dot(t)
    elif abs(alpha**2 + sigma**2 - 1) < 1e-5:

        def norm(t):
            return jnp.sqrt(path.alpha(t) ** 2 + (shift * path.sigma(t)) ** 2)

        def norm_dot(t):
            square = path.alpha(t) * path.alpha_dot(t)
            return (square + shift**2 * path.sigma(t) * path.sigma_dot(t)) / norm(t)
    else:
        raise ValueError(
            f"diffusion.shift is {shift:g}, which diffusion.path={path.name} does not have; set "
            "diffusion.sigma_min and sigma_max, or choose another path"
        )

    def quotient_dot(value, value_dot, t):
        return (value_dot(t) - value(t) * norm_dot(t) / norm(t)) / norm(t)

    return dataclasses.replace(
        path,
        alpha=lambda t: path.alpha(t) / norm(t),
        sigma=lambda t: shift * path.sigma(t) / norm(t),
        alpha_dot=lambda t: quotient_dot(path.alpha, path.alpha_dot, t),
        sigma_dot=lambda t: shift * quotient_dot(path.sigma, path.sigma_dot, t),
    )


PATHS: dict[str, Callable[..., Path]] = {
    "rectified_flow": rectified_flow,
    "ddpm_linear": ddpm_linear,
    "ddpm_discrete": ddpm_discrete,
    "cosine": cosine,
    "ve": variance_exploding,
}


def make_path(
    name: str,
    *,
    shift: float = 1.0,
    sigma_data: float = 1.0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    t_min: float | None = None,
    t_max: float | None = None,
) -> Path:
    """The path of that name; `sigma_min` and `sigma_max` are for `ve`, `shift` for the others;
    `t_min` and `t_max` take the place of its own training times, within them.

    Raises:
      ValueError: there is none, it cannot be shifted, or it has no such times.
    """
    if name not in PATHS:
        raise ValueError(f"diffusion.path is {name!r}; choose one of {', '.join(PATHS)}")
    path = PATHS[name](sigma_min, sigma_max) if name == "ve" else PATHS[name]()
    low = path.t_min if t_min is None else t_min
    high = path.t_max if t_max is None else t_max
    if not path.t_min <= low < high <= path.t_max:
        raise ValueError(
            f"diffusion.t_min={low:g} and diffusion.t_max={high:g} are not within the times of "
            f"diffusion.path={name}, {path.t_min:g} to {path.t_max:g}; choose some that are"
        )
    path = dataclasses.replace(path, t_min=low, t_max=high)
    return dataclasses.replace(shifted(path, shift), sigma_data=sigma_data)


def scaled_input(path: Path, x_t: Array, t_B: Array) -> Array:
    """What the network gets of x_t (B, *S, C): itself; or of variance 1, where the path's is not
    the data's (EDM's c_in, Karras et al., arXiv 2206.00364, eq. 7)."""
    if not path.scaled_input:
        return x_t
    variance = (path.sigma_data * path.alpha(t_B)) ** 2 + path.sigma(t_B) ** 2
    return x_t * broadcast(variance**-0.5, x_t)


def broadcast(values_B: Array, x: Array) -> Array:
    """(B,) -> (B, 1, ..., 1), to go with x (B, *S, C)."""
    return values_B.reshape(values_B.shape[0], *(1,) * (x.ndim - 1))


def add_noise(path: Path, x0: Array, eps: Array, t_B: Array) -> Array:
    """x_t = alpha(t) x0 + sigma(t) eps, for x0 and eps (B, *S, C)."""
    return broadcast(path.alpha(t_B), x0) * x0 + broadcast(path.sigma(t_B), x0) * eps


def log_snr(path: Path, t: Array) -> Array:
    """log(alpha^2 / sigma^2), decreasing in t."""
    return 2.0 * (jnp.log(path.alpha(t)) - jnp.log(path.sigma(t)))


def noise_ratio(path: Path, t: float) -> float:
    """sigma / alpha."""
    alpha = float(path.alpha(jnp.float32(t)))
    return float(path.sigma(jnp.float32(t))) / alpha if alpha > 0 else float("inf")


def time_at(path: Path, lam: Array) -> Array:
    """The t in [t_min, t_max] where log(alpha / sigma), decreasing in t, is `lam`, of any shape, by
    bisection within a program; the nearer end where it is nowhere."""

    def halve(_, ends):
        low, high = ends
        middle = 0.5 * (low + high)
        larger = path.alpha(middle) > path.sigma(middle) * jnp.exp(lam)
        return jnp.where(larger, middle, low), jnp.where(larger, high, middle)

    ends = (jnp.full_like(lam, path.t_min), jnp.full_like(lam, path.t_max))
    low, high = jax.lax.fori_loop(0, 60, halve, ends)
    return 0.5 * (low + high)


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
