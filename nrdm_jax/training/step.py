"""The one train step, for every objective, model and mesh: (state, batch) -> (state, metrics)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nrdm_jax.diffusion.importance import Importance
from nrdm_jax.sharding.axes import constrain
from nrdm_jax.signatures import Array, Batch, Metrics, ObjectiveFn, Params
from nrdm_jax.training import accumulation, ema, power_ema, sensitivity
from nrdm_jax.training.optimizer import Averaged
from nrdm_jax.training.state import TrainState

# What a step whose loss or gradient is not finite leaves as it was.
GUARDED = ("params", "ema", "opt", "averages", "importance")

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    objective: ObjectiveFn,
    optimizer: optax.GradientTransformation,
    *,
    micro_batches: int,
    ema_halflife_images: float,
    averaged: Averaged | None = None,
    units: int = 0,
    penalty: float = 0.0,
    penalty_examples: int = 0,
    importance: Importance | None = None,
    by_step: bool = False,
) -> TrainStep:
    """A pure step, for batches of any shape and size. The noise of example i of step s depends on
    (state.key, s, i) only, so neither the mesh nor the number of micro-batches changes what is
    trained on.

    Args:
      objective: see `signatures.ObjectiveFn`.
      optimizer: sees the gradient of the mean loss over the batch.
      micro_batches: forward-backward passes that share a step; gradients add up in float32.
      ema_halflife_images: see `ema.decay`.
      averaged: in the place of the EMA, see `optimizer.Optimizer`.
      units: residual units to probe, all of the model's; 0: no probe.
      penalty: factor of the sensitivity penalty (`sensitivity.unevenness`) in what is minimised.
      penalty_examples: of the batch, on which it is measured: the first ones.
      importance: of an objective whose times are drawn by the losses so far: it gets
        `state.importance` as its `history`, all parts of a batch the same.
      by_step: of an objective that changes with the run: it gets the steps done as its `step`.

    The step's metrics: the means of the objective's, `loss`, `grad_norm`, and `finite`, 0 where the
    loss or the gradient was not: then all but the count of steps stays as it was. With a probe,
    `profile` (units + 1,) and `health` (units + 1, 2), see `sensitivity`; with a penalty, `penalty`
    without its factor.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        batch_size = batch["x"].shape[0]  # over all devices
        own = objective
        if importance:
            own = functools.partial(own, history=state.importance)
        if by_step:
            own = functools.partial(own, step=state.step)

        def mean_loss(params: Params, taps: Array | None, batch: Batch, keys: Array):
            loss_B, metrics = own(params, batch, keys, taps)
            return jnp.mean(loss_B), metrics

        def gradient(params: Params, batch: Batch, keys: Array):
            """((loss, metrics), (of the params, of the taps or None))"""
            taps = jnp.zeros(units + 1) if units else None
            return jax.value_and_grad(mean_loss, argnums=(0, 1), has_aux=True)(
                params, taps, batch, keys
            )

        total_gradient = accumulation.accumulated(gradient, micro_batches)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(batch_size))
        (loss, metrics), (grads, squares) = total_gradient(state.params, batch, keys)
        metrics = dict(metrics)
        if units:
            metrics["profile"] = sensitivity.profile(squares, batch_size, micro_batches)
        if penalty:
            few, few_keys = jax.tree.map(_first(penalty_examples), (dict(batch), keys))
            value, extra = sensitivity.penalty_gradient(
                mean_loss, state.params, few, few_keys, units
            )
            grads = jax.tree.map(lambda g, e: g + penalty * e, grads, extra)
            metrics["penalty"] = value
        grad_norm = optax.global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

        # Where batches differ in size the state counts the images; else its steps tell.
        images: Any = ()
        images_seen = (state.step + 1).astype(jnp.float32) * batch_size
        if not isinstance(state.images, tuple):
            # Held at the largest: after a wrap the average would forget all but the last batches.
            left = jnp.uint32(2**32 - 1) - state.images
            images = state.images + jnp.minimum(jnp.uint32(batch_size), left)
            images_seen = images.astype(jnp.float32)
        decay = ema.decay(images_seen, batch_size, ema_halflife_images)
        seen: Any = metrics.pop("importance") if importance else None

        def updated() -> dict[str, Any]:
            updates, opt = optimizer.update(grads, state.opt, state.params)
            params = optax.apply_updates(state.params, updates)
            mean = averaged(opt, params) if averaged else ema.update(state.ema, params, decay)
            averages = power_ema.update(state.averages, params, state.step + 1)
            history = state.importance
            if importance:
                history = importance.updated(history, seen, batch_size)
            return dict(params=params, ema=mean, opt=opt, averages=averages, importance=history)

        kept = guarded(finite, updated, state)

        metrics = dict(metrics, loss=loss, grad_norm=grad_norm, finite=finite.astype(jnp.float32))
        return state.replace(step=state.step + 1, images=images, **kept), metrics

    return step


def guarded(
    finite: Array, updated: Callable[[], dict[str, Any]], state: TrainState
) -> dict[str, Any]:
    """The new fields where an update is finite, else the old ones: the guard on the device. A
    branch, as a choice between two trees, leaf by leaf, makes XLA copy the old weights and moments
    at every step."""
    return jax.lax.cond(finite, updated, lambda: {name: getattr(state, name) for name in GUARDED})


def _first(count: int):
    def first(x: Array) -> Array:
        return constrain(x[:count], "activation_batch", *(None,) * (x.ndim - 1))

    return first
