"""What a run is measured by, from a config: held-out losses, likelihood, features."""

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nrdm_jax import networks, texts
from nrdm_jax.data import loader
from nrdm_jax.data.captions import plain
from nrdm_jax.data.sources import Source
from nrdm_jax.diffusion import (
    known,
    likelihood,
    losses,
    noise,
    predictions,
)
from nrdm_jax.diffusion.schedules import Path, time_at_log_snr
from nrdm_jax.evaluation import linear_denoiser
from nrdm_jax.evaluation.features import FeatureNet, open_net
from nrdm_jax.evaluation.heldout import heldout_losses
from nrdm_jax.sharding.mesh import batch_sharding, replicated
from nrdm_jax.training import objectives


def heldout_batches(config, records: Source, mesh: Mesh, limit: int = 0):
    """A function that yields the held-out records once, in order."""
    return functools.partial(
        loader.in_order,
        records,
        config.evaluate.batch_size,
        batch_sharding(mesh),
        limit=limit,
        finish=texts.finish(config, mesh),
    )


def level_times(config, path: Path) -> tuple[float, ...]:
    """The time of each level of `evaluate.log_snr`. Raises as `time_at_log_snr`."""
    return tuple(time_at_log_snr(path, level) for level in config.evaluate.log_snr)


def level_sums(config, apply: objectives.ApplyFn, path: Path, mesh: Mesh):
    """Jitted (params, batch, seeds) -> sums of loss and x0 error at each level."""
    times_at, see = level_times(config, path), networks.see(config)

    def sums(params, batch, seeds):
        def denoise(x_t, t, given):
            return apply(params, x_t, t, given)

        x0 = objectives.to_model_range(batch["x"], config.data.scale, config.data.shift)
        seen, unknown = known.look(see, batch, x0, noise.keys_of_seeds(seeds))
        given = objectives.given_of(batch, seen)
        return losses.level_sums(
            denoise,
            path,
            config.diffusion.prediction,
            times_at,
            x0,
            given,
            batch["mask"],
            seeds,
            unknown,
        )

    return jax.jit(sums, out_shardings=replicated(mesh))


def diffusion_losses(
    config, apply: objectives.ApplyFn, path: Path, heldout: Source, mesh: Mesh, limit: int = 0
):
    """(params, poll) -> held-out losses at the levels of `evaluate.log_snr`."""
    return functools.partial(
        _losses_at_levels, config, level_sums(config, apply, path, mesh),
        heldout_batches(config, heldout, mesh, limit),
    )  # fmt: skip


def _losses_at_levels(config, sums, batches, params, poll=lambda: None) -> dict[str, float]:
    return heldout_losses(sums, params, batches, config.evaluate.log_snr, poll)


def linear_losses(
    config, path: Path, records: Source, heldout: Source, mesh: Mesh, poll=lambda: None
) -> dict[str, float]:
    """Those of the best linear denoiser, as `wiener`; {} of examples too large for it."""
    linear = fitted(config, records)
    if linear is None:
        return {}
    poll()
    sums = linear_level_sums(config, path, mesh)
    found = _losses_at_levels(config, sums, heldout_batches(config, heldout, mesh), linear, poll)
    return {
        name.replace("heldout_loss", "wiener"): value
        for name, value in found.items()
        if name.startswith("heldout_loss")
    }


def fitted(config, records: Source) -> linear_denoiser.LinearDenoiser | None:
    """To these records; none, and it says so, where that takes too much memory."""
    needed = linear_denoiser.bytes_of_fit(len(records), math.prod(records.shape))
    if needed > linear_denoiser.MOST_BYTES:
        print(f"nothing linear beside it: that takes {needed / 2**30:.0f} GiB", flush=True)
        return None
    return linear_denoiser.fit(example_blocks(config, records), len(records))


def diffusion_result(losses: list[float], scores: dict) -> dict:
    """What the job reports of a diffusion."""
    wiener = scores.get("wiener")
    return {
        "heldout_loss_first": losses[0] if losses else None,
        "heldout_loss_last": scores["heldout_loss"],
        "wiener": wiener,
        "ratio": None if wiener is None else scores["heldout_loss"] / wiener,
        "nearest_samples": scores.get("nearest_samples"),
        "nearest_heldout": scores.get("nearest_heldout"),
    }


def bits_sums(config, path: Path, mesh: Mesh, *, probes: int, steps: int):
    """Jitted (params, batch, seeds) -> sums of the unmasked examples' bits per number, and of their
    squares: exact likelihoods under what is given, pixels dequantised by even noise.

    Args:
      probes: of the divergence, 0: exact.
      steps: see `likelihood.bits_per_dim`.
    """
    if (see := networks.see(config)) is not None and see.itself:
        raise ValueError(
            f"--likelihood with data.seen={config.data.seen}: a part of an example is known, and "
            "has no bits"
        )
    shape, prediction = tuple(config.data.shape), config.diffusion.prediction
    plain = config.copy_and_resolve_references()
    # Derivatives forwards do not pass through a memory mode or a kernel that has its own backwards.
    plain.model.memory, plain.model.attention_kernel = "none", "xla"
    _, apply = networks.model(plain, mesh, path)

    def sums(params, batch, seeds):
        x = batch["x"]

        def predict(x_t, t):
            output = apply(params, x_t, t, given)[..., : shape[-1]]
            return predictions.to_x0_eps(path, prediction, output, x_t, t)

        x0 = objectives.to_model_range(x, config.data.scale, config.data.shift)
        seen, _ = known.look(see, batch, x0, noise.keys_of_seeds(seeds))
        given = objectives.given_of(batch, seen)
        pixel = 2 / 255 if x.dtype == jnp.uint8 else config.data.scale
        if x.dtype == jnp.uint8:
            x0 = x0 + pixel * (noise.uniform_of_seeds(seeds, shape) - 0.5)
        divergence = (
            likelihood.hutchinson(noise.signs_of_seeds(seeds, shape, probes))
            if probes
            else likelihood.exact
        )
        bits = likelihood.bits_per_dim(predict, path, x0, divergence, steps=steps, pixel=pixel)
        bits = jnp.where(batch["mask"], bits, 0.0)
        return jnp.sum(bits), jnp.sum(bits**2)

    return jax.jit(sums, out_shardings=replicated(mesh))


def linear_level_sums(config, path: Path, mesh: Mesh):
    """The same for a `LinearDenoiser` in the place of the params."""

    def apply(denoiser, x_t, t, given):
        # All examples of a level have one time.
        x0, eps = linear_denoiser.estimate_x0(denoiser, x_t, path.alpha(t[0]), path.sigma(t[0]))
        return predictions.target(path, config.diffusion.prediction, x0, eps, t)

    return level_sums(config, apply, path, mesh)


BLOCK_BYTES = 2**27  # of examples that are held at once on the host


def example_blocks(
    config, records: Source, numbers: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """These records, by default all, in the network's range, (n, *S, C) float32 on the host, a
    block at a time."""
    numbers = np.arange(len(records)) if numbers is None else numbers
    block = max(1, BLOCK_BYTES // (4 * math.prod(records.shape)))
    records = plain(records)
    for start in range(0, len(numbers), block):
        x = records.gather(numbers[start : start + block])["x"]
        yield np.asarray(objectives.to_model_range(x, config.data.scale, config.data.shift))


def feature_net(config, name: str | None = None, weights: str | None = None) -> FeatureNet:
    """By default the config's; raises as `features.open_net`."""
    c = config.evaluate
    if name is None or name == c.net:
        weights = weights or c.weights
    return open_net(name or c.net, weights)
