"""Dormand and Prince's adaptive method of order 5 on the probability-flow ODE, by diffrax."""

import jax
import jax.numpy as jnp

from nrdm_jax.diffusion.predictions import velocity_of
from nrdm_jax.diffusion.samplers.previews import Recorded
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
    recorded = predict if isinstance(predict, Recorded) else None
    evaluate = recorded.predict if recorded else predict

    def estimates(x, t):
        t_B = jnp.full(x.shape[:1], t, x.dtype)
        return evaluate(x, t_B), t_B

    def slope(t, x, _):
        (x0, eps), t_B = estimates(x, t)
        return velocity_of(path, x0, eps, t_B)

    end = diffrax.SubSaveAt(t1=True)
    between = [diffrax.SubSaveAt(ts=recorded.times)] if recorded else []
    x, *passed = diffrax.diffeqsolve(
        diffrax.ODETerm(slope),
        diffrax.Dopri5(),
        times[0],
        times[-1],
        None,
        x_init,
        saveat=diffrax.SaveAt(subs=[end, *between]),
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
        max_steps=4096,
    ).ys
    if recorded:
        # Its own evaluations lie where its steps do: x at the times is interpolated, and evaluated.
        passing = jax.lax.map(lambda pair: estimates(*pair)[0][0], (passed[0], recorded.times))
        recorded.kept = (passing, recorded.kept[1])
    return x[0]
