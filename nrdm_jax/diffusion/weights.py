"""Weights of the loss by time. A network is trained on its own prediction's loss times a weight, so
that every one of them goes with every path and prediction.

A prediction p x0 + q eps at a given x_t changes by p - q alpha/sigma times what x0 does, so that

    |output - target|^2 = (det / sigma)^2 |x0_hat - x0|^2,   det = alpha q - sigma p,

and a weight w that its authors put on the loss of x0 is w sigma^2 / det^2 here. The rows below are
w sigma^2, which is finite where w is not. `sigmoid` and `likelihood` are their papers' with times
that are uniform; others multiply them by their density.
"""

from collections.abc import Callable

import jax.numpy as jnp

from nrdm_jax.diffusion.predictions import determinant
from nrdm_jax.diffusion.schedules import Path, drift_and_diffusion
from nrdm_jax.signatures import Array

# t (B,) -> weights (B,) of the native loss
WeightFn = Callable[[Array], Array]

# (path, t, gamma or bias) -> weight of the loss of x0, times sigma^2
_ROWS: dict[str, Callable[[Path, Array, float], Array]] = {
    # Hang et al. (arXiv 2303.09556), eq. 8: min(SNR, gamma)
    "min_snr": lambda path, t, gamma: jnp.minimum(path.alpha(t) ** 2, gamma * path.sigma(t) ** 2),
    # Kingma & Gao (arXiv 2303.00848), eq. 3 and section 5: sigmoid(bias - log SNR) times what the
    # log SNR falls by, 2 (sigma'/sigma - alpha'/alpha) dt, on the loss of eps
    "sigmoid": lambda path, t, bias: (
        2
        * jnp.exp(bias)
        * path.alpha(t)
        * path.sigma(t)
        * determinant(path, "velocity", t)
        / (path.alpha(t) ** 2 + jnp.exp(bias) * path.sigma(t) ** 2)
    ),
    # Karras et al. (arXiv 2206.00364), table 1, lambda: (s^2 + d^2) / (s d)^2, s = sigma / alpha
    "edm": lambda path, t, _: (path.sigma(t) / path.sigma_data) ** 2 + path.alpha(t) ** 2,
    # Ma et al. (arXiv 2401.08740), section 2.3: the loss of the velocity, whatever is predicted
    "velocity": lambda path, t, _: determinant(path, "velocity", t) ** 2,
    # Song et al. (arXiv 2101.09258), eq. 7: g^2 on the loss of the score
    "likelihood": lambda path, t, _: (
        drift_and_diffusion(path, t)[1] * (path.alpha(t) / path.sigma(t)) ** 2
    ),
}
WEIGHTS = ("uniform", *_ROWS)


def make_weights(
    name: str, path: Path, prediction: str, *, gamma: float = 5.0, bias: float = 0.0
) -> WeightFn:
    """The weights of that name, of the loss of this prediction.

    Args:
      name: `uniform`, one; or a row above.
      gamma: of min_snr.
      bias: of sigmoid.

    Raises:
      ValueError: there is none, or a weight is not finite at some training time.
    """
    if name == "uniform":
        return jnp.ones_like
    if name not in _ROWS:
        raise ValueError(f"diffusion.weight is {name!r}; choose one of {', '.join(WEIGHTS)}")
    number = {"min_snr": gamma, "sigmoid": bias}.get(name, 0.0)

    def weight(t: Array) -> Array:
        row = _ROWS[name](path, t, number)
        # Of x0 at t = 0, where both may be 0, no weight.
        return jnp.where(row == 0, 0.0, row / determinant(path, prediction, t) ** 2)

    t = jnp.linspace(path.t_min, path.t_max, 1001, dtype=jnp.float32)
    values = weight(t)
    if not bool(jnp.all(jnp.isfinite(values))):
        worst = float(t[jnp.argmin(jnp.isfinite(values))])
        raise ValueError(
            f"diffusion.weight={name} with diffusion.path={path.name} and prediction={prediction} "
            f"is infinite at t = {worst:.3g}; choose another weight, or diffusion.t_min and t_max "
            "within"
        )
    return weight
