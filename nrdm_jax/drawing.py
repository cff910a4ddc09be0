"""How samples are drawn, from a config: the solver, its times, guidance, and batches."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nrdm_jax import config as configuration
from nrdm_jax import networks, texts
from nrdm_jax.data import order
from nrdm_jax.data.sources import Source
from nrdm_jax.diffusion import grids, guidance, known, noise
from nrdm_jax.diffusion.samplers.table import Solver, make_sampler
from nrdm_jax.diffusion.schedules import Path
from nrdm_jax.sampling.generate import Generator, make_sample_fn
from nrdm_jax.sharding.mesh import batch_devices
from nrdm_jax.signatures import Array
from nrdm_jax.training import objectives


def trajectory(config, path: Path, steps: int | None = None) -> tuple[Solver, Array]:
    """The solver, and the times that it goes through."""
    c = config.sample
    options = {name: c[name] for name in ("eta", "churn", "order", "diffusion", "tolerance")}
    solve = make_sampler(c.sampler, path, options)
    if c.sampler == "dopri5":
        return solve, grids.ends(path)
    return solve, grids.make_times(c.grid, path, c.steps if steps is None else steps, c.rho)


def preview_times(config, path: Path, count: int, steps: int | None = None) -> Array:
    """(count,) of the times that a sampler goes through, evenly from the first to the last.

    Raises:
      ValueError: it does not go through so many.
    """
    _, times_at = trajectory(config, path, steps)
    adaptive = config.sample.sampler == "dopri5"
    if count < 2 or (count > len(times_at) and not adaptive):
        most = "" if adaptive else f" to {len(times_at)}, or more --steps"
        raise ValueError(f"--trajectory={count}: give 2{most or ' or more'}")
    if adaptive:
        return jnp.linspace(times_at[0], times_at[-1], count)
    return times_at[np.linspace(0, len(times_at) - 1, count).round().astype(int)]


def guide(config, path: Path, scale: float):
    """(network, a weaker one or none) -> the guided network."""
    c = config.sample
    by_time = guidance.within(path, scale, *c.guidance_interval) if c.guidance_interval else scale

    def guide(denoise, weaker=None):
        if weaker is None:
            denoise = guidance.classifier_free(
                denoise, networks.nothing(config), by_time, c.guidance_rescale
            )
        else:
            denoise = guidance.autoguidance(denoise, weaker, by_time)
        if c.threshold:
            prediction = config.diffusion.prediction
            denoise = guidance.dynamic_thresholding(denoise, path, prediction, c.threshold)
        return denoise

    return guide


def generator(
    config,
    apply: objectives.ApplyFn,
    path: Path,
    mesh: Mesh,
    *,
    steps: int | None = None,
    scale: float | None = None,
    weaker: objectives.ApplyFn | None = None,
    preview_times: Array | None = None,
) -> Generator:
    """What is not given is the config's. With `weaker`, a network of the same path and prediction,
    the guidance is away from it, and the generator takes a pair of weights. With times, see
    `preview_times`, it gives the estimates of x0 there as well.

    Raises:
      ValueError: as `predictions.check`.
    """
    c = config.sample
    see = networks.see(config)
    solve, times_at = trajectory(config, path, steps)
    sample = make_sample_fn(
        apply,
        path,
        config.diffusion.prediction,
        shape=tuple(config.data.shape),
        solve=solve,
        times=times_at,
        guide=guide(config, path, c.guidance if scale is None else scale),
        weaker=weaker,
        learned_variance=(
            c.sampler == "ddpm"
            and config.model.learn_variance
            and config.diffusion.variance_weight > 0
        ),
        preview_times=preview_times,
        finish=_completed if see is not None and see.itself else lambda x, given: x,
    )
    return Generator(sample, mesh, batch_size(config, mesh))


def _completed(x: Array, given: Any) -> Array:
    return known.completed(x, given["seen"])


PROMPTS = 64  # held-out records whose texts are read, and places seen, at a time


def by_class(config) -> bool:
    """Whether samples are given a class and nothing else."""
    return configuration.with_class(config) and _label_alone(config)


def unconditional(config) -> bool:
    """Whether samples are given nothing."""
    return not configuration.with_class(config) and _label_alone(config)


def _label_alone(config) -> bool:
    return set(networks.given(config, 1)) == {"label"}


def prompts(
    config,
    seeds: np.ndarray,
    heldout: Callable[[], Source],
    labels: np.ndarray | None = None,
    captions: Sequence[str] | None = None,
    rows: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """What the samples of these seeds are given: classes in turn or the `labels`; where there is
    more than a class, what is given with held-out records, evenly from the first to the last, or
    these `captions`. Devices have computed states of texts, and may differ in their last bits from
    process to process; `Generator` takes the writer's.

    Args:
      seeds: (n,).
      heldout: opens those records.
      labels: (n,), of samples that are given nothing else, or captions.
      captions: (n,).
      rows: (m,): the samples, of these n, that this is wanted of; by default all. States of many
        texts are large, so that whoever draws many samples asks for a batch at a time.

    Raises:
      ValueError: there are captions that nobody reads; or labels or captions for samples that are
        given more.
    """
    rows = np.arange(len(seeds)) if rows is None else rows
    if captions is not None:
        return _of_captions(config, captions, labels, rows)
    if by_class(config):
        labels = seeds % config.data.num_classes if labels is None else labels
        return {"label": np.asarray(labels, np.int32)[rows]}
    if labels is not None:
        raise ValueError("samples of this run are not given a class alone; leave out --labels")
    if unconditional(config):
        return {"label": np.full(len(rows), config.data.num_classes, np.int32)}
    records = heldout()
    numbers, seeds = order.spread(len(seeds), len(records))[rows], seeds[rows]
    see, finish = networks.see(config), texts.finish(config)
    parts: list[dict[str, np.ndarray]] = []
    for start in range(0, len(seeds), PROMPTS):
        part = slice(start, start + PROMPTS)
        found = records.gather(numbers[part])
        batch = finish({name: jnp.asarray(values) for name, values in found.items()})
        x0 = objectives.to_model_range(batch["x"], config.data.scale, config.data.shift)
        keys = noise.keys_of_seeds(jnp.asarray(seeds[part], jnp.uint32))
        given = objectives.given_of(batch, known.look(see, batch, x0, keys)[0])
        parts.append({name: np.asarray(value) for name, value in given.items()})
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def heldout_captions(config, count: int, heldout: Callable[[], Source]) -> list[str] | None:
    """Those of the records that so many samples are given by `prompts`; None where nobody reads
    captions."""
    if not texts.is_read(config):
        return None
    records = heldout()
    return records.captions(order.spread(count, len(records)))


def _of_captions(
    config, captions: Sequence[str], labels: np.ndarray | None, rows: np.ndarray
) -> dict:
    if not texts.is_read(config):
        raise ValueError("--captions: this run reads none (text.encoder=none)")
    if config.data.seen != "none":
        raise ValueError(
            "--captions: samples of this run are given what is seen as well "
            f"(data.seen={config.data.seen}), which held-out records alone have; leave it out"
        )
    if config.text.with_class and labels is None:
        raise ValueError("--captions: this run is given classes as well; give --labels too")
    if not config.text.with_class:
        if labels is not None:
            raise ValueError("--labels: this run is given captions only (text.with_class=False)")
        labels = np.full(len(captions), config.data.num_classes)
    told = texts.given_of(config, [captions[row] for row in rows])
    return {"label": np.asarray(labels, np.int32)[rows]} | told


# Bytes of a batch's trunk on a CPU. Guidance doubles it, and the hidden channels of a unit are four
# times that: half of 32 MiB of L3 holds them. In larger batches an image costs up to a fifth more,
# in smaller ones no less (python -m benchmarks.sampling_speed --batch_size=16).
CPU_TRUNK_BYTES = 2**21


def batch_size(config, mesh: Mesh) -> int:
    """Examples drawn at a time, in whole parts for each of the devices: `sample.batch_size`, or
    what its 0 stands for."""
    size, parts = config.sample.batch_size, batch_devices(mesh)
    if not size:
        size = 64
        if mesh.devices.flat[0].platform == "cpu":
            fitting = max(1, CPU_TRUNK_BYTES // (4 * networks.network(config).trunk_size))
            # A power of two: what is left of a usual number of samples fills its batch as well.
            size = min(size, parts * 2 ** (fitting.bit_length() - 1))
        if mesh.shape["stage"] > 1:
            parts *= config.pipeline.micro_batches or mesh.shape["stage"]
    return -(-size // parts) * parts


def protocol(config, steps: int | None = None, scale: float | None = None) -> dict:
    """What samples depend on beside weights, seeds and labels, as it is written into results; what
    is not given is the config's."""
    settings = configuration.to_dict(config)["sample"]
    for name in ("every", "examples", "batch_size", "write", "voxel_mm"):
        del settings[name]
    given = {"steps": steps, "guidance": scale}
    return {"sampler": settings | {k: v for k, v in given.items() if v is not None}}
