"""What an autoencoder minimises: the error of its reconstructions, and what keeps its latents near
N(0, 1); where they are asked for, a distance of features and a discriminator's verdict (Esser et
al., arXiv 2012.09841; Rombach et al., arXiv 2112.10752)."""

import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from nrdm_jax.signatures import Array, Batch, Metrics, ObjectiveFn, Params
from nrdm_jax.training.objectives import to_model_range


class Posterior(Protocol):
    """What an encoder gives of a batch; see `models.autoencoder.Gaussian`."""

    mean: Array

    def drawn(self, noise: Array) -> Array: ...

    def divergence(self) -> Array: ...


EncodeFn = Callable[[Params, Array], Any]  # (params, x (B, *S, C)) -> Posterior
DecodeFn = Callable[[Params, Array], Array]  # (params, z) -> (B, *S, C)
# (params, x) -> above 0 where it is real, (B, ...)
DiscriminateFn = Callable[[Params, Array], Array]
# (x, its reconstruction) -> (B,)
DistanceFn = Callable[[Array, Array], Array]


def error(kind: str, x: Array, y: Array) -> Array:
    """Mean absolute (l1) or squared (l2) difference of a number of each example, (B,)."""
    gap = x - y
    each = jnp.abs(gap) if kind == "l1" else gap**2
    return jnp.mean(each, axis=tuple(range(1, each.ndim)))


def reconstruction_objective(
    encode: EncodeFn,
    decode: DecodeFn,
    *,
    kind: str,
    kl_weight: float,
    perceptual: DistanceFn | None = None,
    perceptual_weight: float = 0.0,
    discriminate: DiscriminateFn | None = None,
    discriminator_weight: float = 0.0,
    discriminator_start: int = 0,
    scale: float = 1.0,
    shift: float = 0.0,
) -> ObjectiveFn:
    """The objective: error + kl_weight * divergence / (numbers of an example) + the rest.

    With a discriminator D, whose parameters are in the same tree, both of its games are in the one
    loss: the autoencoder pays - D(reconstruction), D as a constant; D pays the hinge loss
    (Lim & Ye, arXiv 1705.02894), max(0, 1 - D(x)) + max(0, 1 + D(reconstruction)), the
    reconstruction as a constant. So neither one's gradient has a part of the other's.

    Args:
      encode, decode: the autoencoder.
      kind: see `error`.
      kl_weight: of the divergence, which is in nats a number of the example.
      perceptual, perceptual_weight: a distance, and its factor.
      discriminate, discriminator_weight: D, and the factor of its verdict.
      discriminator_start: steps before D is trained and heard.
      scale, shift: see `objectives.to_model_range`.

    The objective takes the number of the step as `step`. Its metrics are the terms: `error`,
    `divergence`, `perceptual`, `verdict` (D's of reconstructions) and `discriminator` (its loss).
    """

    def objective(
        params: Params,
        batch: Batch,
        keys: Array,
        taps: Array | None = None,
        step: Array | int = 0,
    ) -> tuple[Array, Metrics]:
        x = to_model_range(batch["x"], scale, shift)
        posterior: Posterior = encode(params, x)
        shape = posterior.mean.shape[1:]
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
        y = decode(params, posterior.drawn(noise))

        terms = {
            "error": error(kind, x, y),
            "divergence": posterior.divergence() / math.prod(x.shape[1:]),
        }
        loss_B = terms["error"] + kl_weight * terms["divergence"]
        if perceptual is not None:
            terms["perceptual"] = perceptual(x, y)
            loss_B = loss_B + perceptual_weight * terms["perceptual"]
        if discriminate is not None:
            started = (jnp.asarray(step) >= discriminator_start).astype(jnp.float32)
            constant = jax.tree.map(jax.lax.stop_gradient, params)
            terms["verdict"] = _mean(discriminate(constant, y))
            real = discriminate(params, x)
            made = discriminate(params, jax.lax.stop_gradient(y))
            terms["discriminator"] = _mean(jax.nn.relu(1.0 - real)) + _mean(jax.nn.relu(1.0 + made))
            game = terms["discriminator"] - discriminator_weight * terms["verdict"]
            loss_B = loss_B + started * game
        return loss_B, jax.tree.map(jnp.mean, terms)

    return objective


def _mean(x: Array) -> Array:
    """Of each example, (B,)."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))
