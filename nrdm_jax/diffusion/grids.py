"""Times at which samplers evaluate the network."""

import numpy as np

from nrdm_jax.diffusion.schedules import Path


def uniform_times(path: Path, steps: int) -> np.ndarray:
    """(steps + 1,) float32 from t_max to 0, evenly spaced; nothing is evaluated at the last one."""
    return np.linspace(path.t_max, 0.0, steps + 1).astype(np.float32)
