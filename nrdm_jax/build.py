"""From a config to the parts of a run, where models meet diffusion and data. Every part takes plain
arguments; this and its neighbours `networks`, `drawing` and `measures` read the config, and what
stands above them no more of it than when and where to call them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from nrdm_jax import config as configuration
from nrdm_jax import drawing, networks
from nrdm_jax.data import loader
from nrdm_jax.data.sources import Source, open_source
from nrdm_jax.diffusion import (
    predictions,
    times,
    weights,
)
from nrdm_jax.diffusion.importance import Importance
from nrdm_jax.diffusion.schedules import Path, make_path
from nrdm_jax.models import fused_attention, quantized
from nrdm_jax.models.memory import check_offload
from nrdm_jax.models.sizes import DIT
from nrdm_jax.models.unit import VARIANTS
from nrdm_jax.sharding.mesh import batch_sharding, check_batch, make_mesh
from nrdm_jax.signatures import Params
from nrdm_jax.training import objectives, step
from nrdm_jax.training.optimizer import Optimizer, make_optimizer, schedule
from nrdm_jax.training.state import TrainState, create, create_sharded


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run that need no data and no directory.

    Attributes:
      config: validated.
      mesh: over all devices.
      apply: (params, x_t, t, given) -> output.
      path: of the diffusion.
      schedule: step -> learning rate.
      train_step: pure, (state, batch) -> (state, metrics).
      abstract_state: shapes, types and shardings of the state.
      fresh_state: allocates it.
      begun_with: the same with weights that are given.
    """

    config: Any
    mesh: Mesh
    apply: objectives.ApplyFn
    path: Path
    schedule: optax.Schedule
    train_step: step.TrainStep
    abstract_state: TrainState
    fresh_state: Callable[[], TrainState]
    begun_with: Callable[[Params], TrainState]


def run(config, devices: Sequence[jax.Device] | None = None) -> Run:
    """On these devices, by default all there are.

    Raises:
      ValueError: the mesh does not fit the devices or the batch, or a combination is refused.
    """
    mesh = make_mesh(config.mesh, devices, config.mesh.slices)
    configuration.check_parallel(_sized(config), mesh.shape)
    platform = mesh.devices.flat[0].platform
    if config.model.memory == "offload":
        check_offload(platform)
    fused_attention.check(config.model.attention_kernel, platform)
    quantized.check(config.model.quantize)
    micro = config.train.batch_size // config.train.micro_batches
    check_batch("train.batch_size / train.micro_batches", micro, mesh)
    check_batch("evaluate.batch_size", config.evaluate.batch_size, mesh)
    path = diffusion_path(config)
    predictions.check(path, config.diffusion.prediction)
    drawing.trajectory(config, path)  # refused now, and not after the first thousand steps
    init, apply = networks.model(config, mesh, path)
    rate, optimizer = optimizing(config)
    train_step = step.make_train_step(
        objective(config, apply, path),
        optimizer.transform,
        batch_size=config.train.batch_size,
        micro_batches=config.train.micro_batches,
        ema_halflife_images=config.train.ema_halflife_images,
        averaged=optimizer.averaged,
        units=networks.network(config).units if networks.probed(config) else 0,
        penalty=config.optim.sensitivity_penalty,
        penalty_examples=config.optim.sensitivity_examples,
        importance=importance(config, path),
    )
    state, fresh, begun = create_sharded(
        init,
        optimizer.transform,
        config.seed,
        mesh,
        config.mesh.zero1,
        importance=importance(config, path),
        widths=config.train.ema_widths,
    )
    step_on_mesh = networks.on_mesh(mesh, train_step)
    return Run(config, mesh, apply, path, rate, step_on_mesh, state, fresh, begun)


def diffusion_path(config) -> Path:
    """Raises as `make_path`."""
    names = ("shift", "sigma_data", "sigma_min", "sigma_max", "t_min", "t_max")
    return make_path(config.diffusion.path, **{name: config.diffusion[name] for name in names})


def _sized(config):
    """The config with the numbers of `model.size` in their fields."""
    sized = config.copy_and_resolve_references()
    if config.model.size:
        sized.model.update(DIT[config.model.size])
        sized.model.size = None
    return sized


def importance(config, path: Path) -> Importance | None:
    """By which the training times are drawn, where they are."""
    d = config.diffusion
    if d.times != "importance":
        return None
    return Importance(path.t_min, path.t_max, d.importance_bins, d.importance_history)


def objective(config, apply: objectives.ApplyFn, path: Path):
    d = config.diffusion
    sample_times = importance(config, path) or times.make_times(
        d.times, path, mean=d.logit_mean, std=d.logit_std, mode_scale=d.mode_scale
    )
    weight = weights.make_weights(
        d.weight, path, d.prediction, gamma=d.snr_gamma, bias=d.sigmoid_bias
    )
    return objectives.diffusion_objective(
        apply,
        path,
        d.prediction,
        sample_times,
        weight,
        nothing=networks.nothing(config),
        dropout=config.model.label_dropout,
        see=networks.see(config),
        scale=config.data.scale,
        shift=config.data.shift,
        variance_weight=d.variance_weight if config.model.learn_variance else 0.0,
        uncertainty=networks.uncertainty if d.uncertainty else None,
    )


def optimizing(config) -> tuple[optax.Schedule, Optimizer]:
    """(learning rate by step, optimizer)."""
    o = config.optim
    rate = schedule(o.schedule, o.learning_rate, o.warmup_steps, config.train.steps)
    return rate, make_optimizer(
        o.name,
        rate,
        b1=o.b1,
        b2=o.b2,
        eps=o.eps,
        weight_decay=o.weight_decay,
        clip_norm=o.clip_norm,
        slow_beta=VARIANTS[config.model.variant].gates(networks.network(config).gates).beta_bound,
        gate_rate=o.gate_rate,
        rates=o.rates,
        no_decay=o.no_decay,
    )


def record_dtype(config):
    """Of records that nobody has opened: pixels, or latents."""
    return jnp.uint8 if config.data.shape[-1] in (1, 3) else jnp.float32


def abstract_batch(config, mesh: Mesh, dtype) -> dict[str, jax.ShapeDtypeStruct]:
    """What the loader yields, as shapes with shardings."""
    size, sharding = config.train.batch_size, batch_sharding(mesh)
    shapes = {"x": jax.ShapeDtypeStruct((size, *config.data.shape), dtype)}
    shapes |= networks.given(config, size)
    if shapes.pop("seen", None) and config.data.seen == "segmentation":
        shapes["segmentation"] = jax.ShapeDtypeStruct((size, *config.data.shape[:-1]), jnp.uint8)
    return {
        name: jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=sharding)
        for name, part in shapes.items()
    }


def abstract_state(config) -> TrainState:
    """Shapes and types of the state, on no mesh."""
    init, _ = networks.model(config)
    transform = optimizing(config)[1].transform
    drawn_by = importance(config, diffusion_path(config))
    widths = config.train.ema_widths
    return jax.eval_shape(
        lambda: create(init, transform, config.seed, importance=drawn_by, widths=widths)
    )


def source(config, split: str, data_dir: str) -> Source:
    """The records of a split. Raises as `data.sources.open_source`."""
    return open_source(
        config.data.name,
        split,
        shape=tuple(config.data.shape),
        num_classes=config.data.num_classes,
        data_dir=config.data.dir or data_dir,
        in_memory_bytes=config.data.in_memory_gib * 2**30,
        segmented=config.data.seen == "segmentation",
        corrupt=config.data.corrupt,
        stride=config.data.frame_stride,
    )


def train_loader(config, records: Source, mesh: Mesh) -> loader.Loader:
    return loader.Loader(
        records,
        batch_size=config.train.batch_size,
        seed=config.seed,
        flip=config.data.flip,
        threads=config.data.threads,
        prefetch=config.data.prefetch,
        sharding=batch_sharding(mesh),
    )
