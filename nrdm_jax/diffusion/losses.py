"""Per-example losses of a network, while training and at fixed noise levels."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nrdm_jax.diffusion import posterior
from nrdm_jax.diffusion.known import mean_over
from nrdm_jax.diffusion.noise import noise_of_keys, noise_of_seeds
from nrdm_jax.diffusion.predictions import target, to_x0_eps
from nrdm_jax.diffusion.schedules import Path, add_noise
from nrdm_jax.signatures import Array, DenoiseFn, Metrics


def mean_squared_error(a: Array, b: Array, where: Array | None = None) -> Array:
    """(B, *S, C) twice -> (B,), in float32; see `known.mean_over`."""
    return mean_over((a.astype(jnp.float32) - b.astype(jnp.float32)) ** 2, where)


def loss_and_error(
    path: Path,
    prediction: str,
    output: Array,
    x_t: Array,
    x0: Array,
    eps: Array,
    t_B: Array,
    where: Array | None = None,
) -> tuple[Array, Array]:
    """Native loss (of the network's own prediction) and error of the x0 it means, (B,) each; see
    `known.mean_over`.

    A network may have more output channels than x0; the first ones are the prediction.
    """
    output = output[..., : x0.shape[-1]].astype(jnp.float32)
    loss = mean_squared_error(output, target(path, prediction, x0, eps, t_B), where)
    x0_hat, _ = to_x0_eps(path, prediction, output, x_t, t_B)
    return loss, mean_squared_error(x0_hat, x0, where)


class Terms(NamedTuple):
    """Of each example at its random time, (B,).

    Attributes:
      t: the time.
      loss: native, not weighted.
      bound: see `posterior.bound`; learns the variance alone. None of a network without one.
    """

    t: Array
    loss: Array
    bound: Array | None


def random_terms(
    denoise: Callable[[Array, Array, Any], tuple[Array, Metrics]],
    path: Path,
    prediction: str,
    sample_times: Callable[[Array], Array],
    x0: Array,
    given: Any,
    keys_B: Array,
    *,
    where: Array | None = None,
    learned_variance: bool = False,
    pixels: bool = False,
) -> tuple[Terms, Metrics]:
    """The terms of a loss at random times and noise, each example's from its own key; and what
    `denoise` returned beside its output.

    Args:
      denoise: (x_t, t, given) -> (output, anything).
      path, prediction, sample_times: see there.
      x0, given, keys_B: of the examples.
      where: the places that count, see `known.mean_over`.
      learned_variance: the second half of the output's channels is of the variance.
      pixels: x0 were uint8.
    """
    both = jax.vmap(jax.random.split)(keys_B)
    t_B = sample_times(both[:, 0])
    eps = noise_of_keys(both[:, 1], x0.shape[1:])
    x_t = add_noise(path, x0, eps, t_B)
    output, metrics = denoise(x_t, t_B, given)
    loss_B, _ = loss_and_error(path, prediction, output, x_t, x0, eps, t_B, where)
    if not learned_variance:
        return Terms(t_B, loss_B, None), metrics
    output, channels = output.astype(jnp.float32), x0.shape[-1]
    mean = jax.lax.stop_gradient(output[..., :channels])
    x0_hat, _ = to_x0_eps(path, prediction, mean, x_t, t_B)
    v = output[..., channels:]
    bits_B = posterior.bound(path, x0, x0_hat, v, t_B, pixels, where)
    return Terms(t_B, loss_B, bits_B), metrics


def level_sums(
    denoise: DenoiseFn,
    path: Path,
    prediction: str,
    times: tuple[float, ...],
    x0: Array,
    given: Any,
    mask_B: Array,
    seeds_B: Array,
    where: Array | None = None,
) -> tuple[Array, Array]:
    """Sums of native loss and x0 error over the unmasked examples, at each of the times: (L,) each.

    The noise of an example depends on its seed and on the level's number. Where `denoise` gives
    several outputs, (A, B, *S, C), the sums are (L, A). `where`: see `known.mean_over`.
    """

    def at(_, level_and_time):
        level, time = level_and_time
        eps = noise_of_seeds(seeds_B * jnp.uint32(len(times)) + level, x0.shape[1:])
        t_B = jnp.full(x0.shape[:1], time, jnp.float32)
        x_t = add_noise(path, x0, eps, t_B)

        def compare(output):
            return loss_and_error(path, prediction, output, x_t, x0, eps, t_B, where)

        output = denoise(x_t, t_B, given)
        pair = (jax.vmap(compare) if output.ndim > x0.ndim else compare)(output)
        mask = mask_B if output.ndim == x0.ndim else mask_B[None]
        return None, tuple(jnp.sum(jnp.where(mask, value, 0.0), axis=-1) for value in pair)

    levels = (jnp.arange(len(times), dtype=jnp.uint32), jnp.asarray(times, jnp.float32))
    return jax.lax.scan(at, None, levels)[1]
