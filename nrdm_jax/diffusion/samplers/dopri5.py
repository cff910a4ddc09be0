"""Dormand and Prince's adaptive method of order 5 on the probability-flow ODE, by diffrax."""

import jax.numpy as jnp

from nrdm_jax.diffusion.predictions import velocity_of
from nrdm_jax.diffusion.schedules import Path
from nrdm_jax.signatures import Array, NoiseFn, PredictFn


def sample(
    predict: PredictFn,
    path: Path,
    x_init: Array,
    times: Array,
    noise: NoiseFn,
    tolerance: float = 1e-4,
) -> Array:
    """Steps are the solver's: of the times, see `grids.ends`, the first and the last count. A step
    is chosen for the whole batch: a sample depends on its neighbours, within the tolerance.

    `tolerance`: of a step, relative and absolute. Other arguments as in `euler.sample`.

    Raises:
      RuntimeError: it takes more than 4,096 steps.
    """
    import diffrax

    del noise

    def slope(t, x, _):
        t_B = jnp.full(x.shape[:1], t, x.dtype)
        return velocity_of(path, *predict(x, t_B), t_B)

    return diffrax.diffeqsolve(
        diffrax.ODETerm(slope),
        diffrax.Dopri5(),
        times[0],
        times[-1],
        None,
        x_init,
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
        max_steps=4096,
    ).ys[0]
