"""UniPC-p: a multi-step predictor of order p in the log-SNR, and a corrector that uses the next
evaluation, which the next step needs anyway; order p + 1."""

import jax.numpy as jnp

from nrdm_jax.diffusion.samplers.exponential import nodes
from nrdm_jax.diffusion.samplers.previews import scan
from nrdm_jax.diffusion.schedules import Path
from nrdm_jax.signatures import Array, NoiseFn, PredictFn

ORDERS = (1, 2, 3)


def sample(
    predict: PredictFn,
    path: Path,
    x_init: Array,
    times: Array,
    noise: NoiseFn,
    order: int = 2,
) -> Array:
    """Zhao et al. (arXiv 2302.04867), algorithms 1 and 2 on the estimate of x0, B(h) = e^h - 1
    there, with the sign of x0: B = e^-h - 1. The first steps are of the order that they have the
    history for. The last one is the predictor alone: a local error of h^(p+1), once.

    `order` is p, of `ORDERS`. Other arguments as in `euler.sample`.
    """
    del noise
    at = nodes(path, times)
    last = len(times) - 2

    def evaluated(x, i):
        return predict(x, jnp.full(x.shape[:1], at.t[i]))[0]

    def step(i, p, x, x0, history, correct):
        """One step of order p from node i; history[k]: x0 at node i - 1 - k."""
        h = at.lam[i + 1] - at.lam[i]
        ratios = [(at.lam[i - 1 - k] - at.lam[i]) / h for k in range(p - 1)]
        slopes = [(history[k] - x0) / ratios[k] for k in range(p - 1)]
        base = at.sigma[i + 1] / at.sigma[i] * x - at.alpha[i + 1] * jnp.expm1(-h) * x0
        scale = -at.alpha[i + 1] * jnp.expm1(-h)
        weights = _weights(-h, ratios)
        predicted = base + scale * sum(
            (w * s for w, s in zip(weights, slopes, strict=True)), jnp.zeros_like(x)
        )
        if not correct:
            return predicted, x0
        following = evaluated(predicted, i + 1)
        *weights, own = _weights(-h, [*ratios, 1.0])
        corrected = base + scale * sum(
            (w * s for w, s in zip(weights, slopes, strict=True)), own * (following - x0)
        )
        return corrected, following

    x, x0 = x_init, evaluated(x_init, 0)
    history: list[Array] = []
    first = min(order - 1, last)
    for i in range(first):
        after, following = step(i, i + 1, x, x0, history, True)
        history = [x0, *history][: order - 1]
        x, x0 = after, following
    p = first + 1

    def body(carry, i):
        x, x0, history = carry
        after, following = step(i, p, x, x0, history, True)
        history = [x0, *history][: len(history)]
        return (after, following, history), None

    x, x0, history = scan(predict, body, (x, x0, history), jnp.arange(first, last))
    return step(last, p, x, x0, history, False)[0]


def _weights(hh: Array, ratios: list) -> list[Array]:
    """Of the slopes at these distances, in units of the step: the solution of
    sum_k r_k^(j-1) w_k = phi_j / B for j = 1, ... (eq. 5 there, phi as in diffusers' statement)."""
    if len(ratios) < 2:
        return [jnp.asarray(0.5, hh.dtype)] * len(ratios)  # to the order that one slope can have
    b = jnp.expm1(hh)
    phi = b / hh - 1.0
    factorial, right = 1.0, []
    for j in range(1, len(ratios) + 1):
        right.append(phi * factorial / b)
        factorial *= j + 1
        phi = phi / hh - 1.0 / factorial
    rows = [jnp.stack([jnp.asarray(r, hh.dtype) ** j for r in ratios]) for j in range(len(ratios))]
    found = jnp.linalg.solve(jnp.stack(rows), jnp.stack(right))
    return list(found)
