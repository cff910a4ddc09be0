"""Times at which samplers evaluate the network: n of them, from t_max to the last before the data.
What is at the last one, its estimate of x0 is the sample."""

import jax.numpy as jnp
import numpy as np

from nrdm_jax.diffusion.schedules import STEPS, Path, noise_ratio, time_at
from nrdm_jax.signatures import Array

# Of sigma / alpha, in grids that are not even in t: EDM's range (arXiv 2206.00364, table 1).
SMALLEST, LARGEST = 0.002, 80.0

GRIDS = ("uniform", "quadratic", "karras", "log_snr", "respaced")


def make_times(name: str, path: Path, steps: int, rho: float = 7.0) -> Array:
    """(steps,) float32, decreasing from t_max.

    Args:
      name: `uniform` in t, t_min being the next; `quadratic`, the squares of those;
        `karras`, even in (sigma/alpha)^(1/rho) (arXiv 2206.00364, eq. 5), and `log_snr`, even in
        log(alpha/sigma) (Lu et al., arXiv 2206.00927, section 3.3), from `LARGEST` or the path's
        largest to `SMALLEST` or its smallest; `respaced`, whole thousandths from t_max to 0, as DiT
        takes them (Nichol & Dhariwal, arXiv 2102.09672, section 4), for paths with noise at 0.
      path: of the marginals.
      steps: how many.
      rho: of karras.

    Raises:
      ValueError: the grid is respaced, and the path has none at t = 0, or not as many thousandths.
    """
    if name == "respaced":
        last = round(path.t_max * STEPS)
        if steps > last + 1 or path.t_min > 0 or noise_ratio(path, 0.0) == 0:
            raise ValueError(
                f"sample.grid is respaced, whole thousandths from {last} to 0, of which "
                f"diffusion.path={path.name} has not {steps} with noise; choose uniform, or "
                "diffusion.path=ddpm_discrete and at most 1000 steps"
            )
        return jnp.asarray(np.rint(np.linspace(last, 0, steps)) / STEPS, jnp.float32)
    left = 1.0 - np.arange(steps) / steps
    if name in ("uniform", "quadratic"):
        part = left if name == "uniform" else left**2
        times = path.t_min + (path.t_max - path.t_min) * part
    else:
        high, low = min(LARGEST, noise_ratio(path, path.t_max)), _smallest(path)
        part = np.linspace(0.0, 1.0, steps) if steps > 1 else np.zeros(1)
        if name == "karras":
            ratios = (high ** (1 / rho) + part * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        else:
            ratios = high * (low / high) ** part
        times = np.array(time_at(path, jnp.asarray(-np.log(ratios), jnp.float32)))
        times[0] = path.t_max
    return jnp.asarray(times, jnp.float32)


def ends(path: Path) -> Array:
    """(2,) float32: t_max, and where the other grids in sigma/alpha end; for a solver that chooses
    its own times between."""
    last = time_at(path, -jnp.log(jnp.float32(_smallest(path))))
    return jnp.stack([jnp.float32(path.t_max), last])


def _smallest(path: Path) -> float:
    return max(SMALLEST, noise_ratio(path, path.t_min))
