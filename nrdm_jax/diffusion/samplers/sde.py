"""Euler-Maruyama on the reverse SDE: order 1/2 in each path, 1 in distribution."""

from collections.abc import Callable

import jax.numpy as jnp

from nrdm_jax.diffusion.predictions import velocity_of
from nrdm_jax.diffusion.samplers.previews import scan
from nrdm_jax.diffusion.schedules import Path, broadcast, drift_and_diffusion, noise_ratio
from nrdm_jax.signatures import Array, NoiseFn, PredictFn

# w(t) >= 0, any: the marginals are the same (Ma et al., SiT, arXiv 2401.08740, section 2.4 and
# table 5).
DIFFUSIONS: dict[str, Callable[[Path, Array], Array]] = {
    "sigma": lambda path, t: path.sigma(t),
    "sbdm": lambda path, t: drift_and_diffusion(path, t)[1],
    "constant": lambda path, t: jnp.ones_like(t),
    "sin2": lambda path, t: jnp.sin(jnp.pi * t) ** 2,
}

# Of sigma / alpha, above which a step of the forward SDE takes x_t far outside of its size.
LARGEST_RATIO = 1000.0


def check(path: Path, diffusion: str) -> None:
    """Raises:
    ValueError: the coefficient is none of `DIFFUSIONS`, or of no use on this path.
    """
    if diffusion not in DIFFUSIONS:
        raise ValueError(
            f"sample.diffusion is {diffusion!r}; choose one of {', '.join(DIFFUSIONS)}"
        )
    if diffusion == "sbdm" and noise_ratio(path, path.t_max) > LARGEST_RATIO:
        raise ValueError(
            "sample.diffusion is sbdm, that of the forward SDE, which grows without bound to t = 1 "
            f"of diffusion.path={path.name}; choose sigma, or another path"
        )
    if diffusion != "sbdm" and path.name == "ve":
        raise ValueError(
            f"sample.diffusion is {diffusion}, far less than sigma grows by in a step of "
            "diffusion.path=ve, so that Euler's error in t stays; choose sbdm"
        )


def sample(
    predict: PredictFn,
    path: Path,
    x_init: Array,
    times: Array,
    noise: NoiseFn,
    diffusion: str = "sigma",
    strength: float = 1.0,
) -> Array:
    """x' = x + dt (v - w/2 score) + sqrt(w |dt|) z, score = -eps / sigma (SiT, eq. 8), w =
    strength * `DIFFUSIONS[diffusion]`.

    Other arguments as in `euler.sample`.
    """
    diffusivity = DIFFUSIONS[diffusion]

    def step(x, inputs):
        i, now, then = inputs
        t_B = jnp.full(x.shape[:1], now)
        x0, eps = predict(x, t_B)
        w = strength * diffusivity(path, now)
        # The coefficient of eps, w / (2 sigma), with the velocity's: both at once.
        drift = velocity_of(path, x0, eps, t_B)
        drift = drift + broadcast(0.5 * w / path.sigma(t_B), x) * eps
        dt = then - now
        return x + dt * drift + jnp.sqrt(w * -dt) * noise(i), None

    numbers = jnp.arange(len(times) - 1)
    return scan(predict, step, x_init, (numbers, times[:-1], times[1:]))
