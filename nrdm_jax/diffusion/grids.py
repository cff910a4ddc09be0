"""Times at which samplers evaluate the network."""

import jax.numpy as jnp
import numpy as np

from nrdm_jax.diffusion.schedules import Path
from nrdm_jax.signatures import Array


def uniform_times(path: Path, steps: int) -> Array:
    """(steps + 1,) float32 from t_max to 0, evenly spaced; nothing is evaluated at the last one."""
    return jnp.asarray(np.linspace(path.t_max, 0.0, steps + 1), jnp.float32)
