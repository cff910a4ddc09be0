"""What a run minimises: functions (params, batch, keys, taps) -> (per-example loss, metrics)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nrdm_jax.diffusion.importance import History, Importance
from nrdm_jax.diffusion.known import See, look
from nrdm_jax.diffusion.losses import random_terms
from nrdm_jax.diffusion.schedules import Path, broadcast, log_snr
from nrdm_jax.signatures import Array, Batch, Given, Metrics, ObjectiveFn, Params

# (params, x_t, t, given) -> output: a model's apply. With taps as a fifth argument it returns the
# health of the units as well.
ApplyFn = Callable[..., Any]


def to_model_range(x: Array | np.ndarray, scale: float, shift: float) -> Array:
    """Records as the network sees them: uint8 pixels to [-1, 1], floats to (x - shift) * scale."""
    values = jnp.asarray(x, jnp.float32)
    return values / 127.5 - 1.0 if x.dtype == jnp.uint8 else (values - shift) * scale


# Fields of a batch that no network is given as they are.
NOT_GIVEN = ("x", "mask", "segmentation")


def given_of(batch: Batch, seen: Array | None = None) -> Given:
    """What a batch tells a network of its examples: all but those, and what is `seen`, see
    `diffusion.known`."""
    given = {name: value for name, value in batch.items() if name not in NOT_GIVEN}
    return given if seen is None else given | {"seen": seen}


def diffusion_objective(
    apply: ApplyFn,
    path: Path,
    prediction: str,
    sample_times: Callable[[Array], Array] | Importance,
    weight: Callable[[Array], Array] = jnp.ones_like,
    *,
    nothing: Callable[[Any], Any],
    dropout: float,
    see: See | None = None,
    scale: float = 1.0,
    shift: float = 0.0,
    variance_weight: float = 0.0,
    uncertainty: Callable[[Params, Array], Array] | None = None,
) -> ObjectiveFn:
    """The diffusion loss, with what is given left out at times for classifier-free guidance (Ho &
    Salimans, arXiv 2207.12598).

    Args:
      apply: the network.
      path, prediction, sample_times, weight: see `diffusion`. Times by importance are drawn by the
        objective's argument `history`, and its metric `importance` is what was observed: means over
        the examples that make the next history.
      nothing: what is given -> what takes its place with probability `dropout`.
      see: what is known of an example, see `diffusion.known`; what is not is what counts.
      scale, shift: see `to_model_range`.
      variance_weight: the network learns a variance: factor of its bound, which is added. 1 is
        L_simple + 0.001 L_vlb of a thousand steps (Nichol & Dhariwal, arXiv 2102.09672, eq. 16),
        and the MSE loss of DiT. 0: it has none, or does not learn it.
      uncertainty: (params, log SNR (B,)) -> u (B,): the weighted loss l becomes l / e^u + u, least
        where e^u is the mean of l at that noise, so that all of them weigh alike (Karras et al.,
        arXiv 2312.02696, appendix B.2).

    The metrics: `health` with taps; `weighted_loss`, where it is not all that is minimised, and
    `variance_bound`, in bits a number, means over the batch's times, or over uniform ones where
    these are drawn by importance.
    """

    def objective(
        params: Params,
        batch: Batch,
        keys: Array,
        taps: Array | None = None,
        history: History | None = None,
    ) -> tuple[Array, Metrics]:
        both = jax.vmap(jax.random.split)(keys)
        dropped = jax.vmap(lambda k: jax.random.bernoulli(k, dropout))(both[:, 0])
        x0 = to_model_range(batch["x"], scale, shift)
        seeing = jax.vmap(jax.random.fold_in, in_axes=(0, None))(both[:, 0], 1)
        seen, unknown = look(see, batch, x0, seeing)
        given = given_of(batch, seen)
        given = jax.tree.map(
            lambda none, value: jnp.where(broadcast(dropped, value), none, value),
            nothing(given),
            given,
        )

        def denoise(x_t, t, given):
            if taps is None:
                return apply(params, x_t, t, given), {}
            output, health = apply(params, x_t, t, given, taps)
            return output, {"health": health}

        draw: Callable[[Array], Array]
        if isinstance(sample_times, Importance):
            assert history is not None, "times by importance are drawn by a history"
            chances = sample_times.chances(history)
            draw = functools.partial(sample_times.draw, chances)
        else:
            draw = sample_times
        terms, metrics = random_terms(
            denoise,
            path,
            prediction,
            draw,
            x0,
            given,
            both[:, 1],
            where=unknown,
            learned_variance=variance_weight > 0,
            pixels=batch["x"].dtype == jnp.uint8,
        )
        loss_B = weighted_B = weight(terms.t) * terms.loss
        if uncertainty is not None:
            u_B = uncertainty(params, log_snr(path, terms.t))
            loss_B = loss_B * jnp.exp(-u_B) + u_B
        parts = {}
        if terms.bound is not None:
            loss_B = loss_B + variance_weight * terms.bound
            parts["variance_bound"] = terms.bound
        if loss_B is not weighted_B:
            parts["weighted_loss"] = weighted_B
        if isinstance(sample_times, Importance):
            metrics = metrics | {"importance": sample_times.observed(terms.t, loss_B)}
            ratio_B = sample_times.ratio(chances, terms.t)
            loss_B, parts = jax.tree.map(lambda part_B: ratio_B * part_B, (loss_B, parts))
        return loss_B, metrics | jax.tree.map(jnp.mean, parts)

    return objective
