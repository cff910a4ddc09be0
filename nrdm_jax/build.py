"""From a config to the parts of a run, where models meet diffusion and data. Every part takes plain
arguments; this and its neighbours `networks`, `drawing` and `measures` read the config, and what
stands above them no more of it than when and where to call them."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from nrdm_jax import autoencoding, drawing, measures, networks, texts
from nrdm_jax import config as configuration
from nrdm_jax.data import loader, order
from nrdm_jax.data.buckets import BucketLoader
from nrdm_jax.data.errors import DataError, NoRecordsError
from nrdm_jax.data.latents import LatentSource
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
from nrdm_jax.signatures import Params, Shape
from nrdm_jax.tasks import Task
from nrdm_jax.training import objectives, step
from nrdm_jax.training.optimizer import Optimizer, make_optimizer, schedule
from nrdm_jax.training.state import TrainState, create, create_sharded


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run that need no data and no directory.

    Attributes:
      config: validated.
      mesh: over all devices.
      task: what is trained.
      schedule: step -> learning rate.
      train_step: pure, (state, batch) -> (state, metrics).
      abstract_state: shapes, types and shardings of the state.
      fresh_state: allocates it.
      begun_with: the same with weights that are given.
    """

    config: Any
    mesh: Mesh
    task: Task
    schedule: optax.Schedule
    train_step: step.TrainStep
    abstract_state: TrainState
    fresh_state: Callable[[], TrainState]
    begun_with: Callable[[Params], TrainState]

    @property
    def apply(self) -> Callable[..., Any]:
        """Of the task."""
        return self.task.apply

    @property
    def path(self) -> Path:
        """Of the diffusion.

        Raises:
          ValueError: the run is of another task.
        """
        if self.task.path is None:
            raise ValueError(
                f"task is {self.config.task}, and this is of diffusions; give a run of "
                "task=diffusion"
            )
        return self.task.path


def run(config, devices: Sequence[jax.Device] | None = None) -> Run:
    """On these devices, by default all there are.

    Raises:
      ValueError: the mesh does not fit the devices or the batch, or a combination is refused.
    """
    mesh = make_mesh(config.mesh, devices, config.mesh.slices)
    for shape in configuration.shapes(config):
        one = configuration.at_shape(config, shape)
        configuration.check_parallel(_sized(one), mesh.shape)
        micro = one.train.batch_size // config.train.micro_batches
        check_batch(f"{_batch_field(config)} / train.micro_batches", micro, mesh)
    platform = mesh.devices.flat[0].platform
    if config.model.memory == "offload":
        check_offload(platform)
    fused_attention.check(config.model.attention_kernel, platform)
    quantized.check(config.model.quantize)
    check_batch("evaluate.batch_size", config.evaluate.batch_size, mesh)
    trained = task(config, mesh)
    rate, optimizer = optimizing(config)
    train_step = step.make_train_step(
        trained.objective,
        optimizer.transform,
        micro_batches=config.train.micro_batches,
        ema_halflife_images=config.train.ema_halflife_images,
        averaged=optimizer.averaged,
        units=trained.units,
        penalty=config.optim.sensitivity_penalty,
        penalty_examples=config.optim.sensitivity_examples,
        importance=trained.importance,
        by_step=trained.by_step,
    )
    state, fresh, begun = create_sharded(
        trained.init,
        optimizer.transform,
        config.seed,
        mesh,
        config.mesh.zero1,
        importance=trained.importance,
        widths=config.train.ema_widths,
        counts_images=configuration.sizes_differ(config),
    )
    step_on_mesh = networks.on_mesh(mesh, train_step)
    return Run(config, mesh, trained, rate, step_on_mesh, state, fresh, begun)


def diffusion_task(config, mesh: Mesh | None = None) -> Task:
    """Raises:
    ValueError: path, prediction, sampler or levels do not go together.
    """
    path = diffusion_path(config)
    predictions.check(path, config.diffusion.prediction)
    drawing.trajectory(config, path)  # refused now, and not after the first thousand steps
    measures.level_times(config, path)
    init, apply = networks.model(config, mesh, path)
    net = networks.network(config)
    return Task(
        init=init,
        apply=apply,
        objective=objective(config, apply, path),
        in_words=net.depth_in_words(),
        forward=functools.partial(_forward, config),
        sampler=functools.partial(_sampler, config, path, apply=apply),
        prompts=functools.partial(drawing.prompts, config),
        heldout=functools.partial(measures.diffusion_losses, config, apply, path),
        yardstick=functools.partial(measures.linear_losses, config, path),
        result=measures.diffusion_result,
        path=path,
        units=net.units if networks.probed(config) else 0,
        scanned_units=net.scanned_units,
        importance=importance(config, path),
    )


def _sampler(config, path: Path, mesh: Mesh, *, apply: objectives.ApplyFn, **options):
    return drawing.generator(config, apply, path, mesh, **options)


def _forward(config, at):
    """Fused kernels and 8-bit products do not tell their FLOPs, and on a mesh a device's part would
    be counted and not a whole example."""
    plain = config.copy_and_resolve_references()
    plain.model.attention_kernel, plain.model.quantize = "xla", "none"
    return networks.model(plain)[1], networks.example(at, 1)


TASKS: dict[str, Callable[..., Task]] = {
    "diffusion": diffusion_task,
    "autoencoder": autoencoding.task,
}


def task(config, mesh: Mesh | None = None) -> Task:
    """What `config.task` names. Raises as it."""
    return TASKS[config.task](config, mesh)


def diffusion_path(config) -> Path:
    """Raises as `make_path`."""
    names = ("shift", "sigma_data", "sigma_min", "sigma_max", "t_min", "t_max")
    return make_path(config.diffusion.path, **{name: config.diffusion[name] for name in names})


def _batch_field(config) -> str:
    """What sets the size of a batch."""
    by_tokens = config.data.buckets and config.data.bucket_tokens
    return "data.bucket_multiple, whose batch" if by_tokens else "train.batch_size"


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
    of_pixels = config.data.shape[-1] in (1, 3) and not autoencoding.in_latents(config)
    return jnp.uint8 if of_pixels else jnp.float32


def abstract_batch(
    config, mesh: Mesh, dtype, shape: Shape | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """What the loader yields of a shape, by default `data.shape`, as shapes with shardings."""
    config = configuration.at_shape(config, shape or config.data.shape)
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
    trained = task(config)
    transform = optimizing(config)[1].transform
    return jax.eval_shape(
        lambda: create(
            trained.init,
            transform,
            config.seed,
            importance=trained.importance,
            widths=config.train.ema_widths,
            counts_images=configuration.sizes_differ(config),
        )
    )


def source(config, split: str, data_dir: str, shape: Shape | None = None) -> Source:
    """The records of a split as the data set has them, in the bucket of a shape, by default of
    `data.shape`, with what is given of their captions where these are read; of a run in latents,
    see `records.source`. Raises as `data.sources.open_source` and `texts.source`."""
    data_dir = config.data.dir or data_dir
    records = open_source(
        config.data.name,
        split,
        shape=tuple(shape or config.data.shape),
        num_classes=config.data.num_classes,
        data_dir=data_dir,
        in_memory_bytes=config.data.in_memory_gib * 2**30 / len(configuration.shapes(config)),
        seen_classes=config.data.seen_classes if config.data.seen == "segmentation" else 0,
        among=tuple(config.data.buckets),
        corrupt=config.data.corrupt,
        stride=config.data.frame_stride,
    )
    return texts.source(config, records, data_dir)


def training_sources(config, data_dir: str) -> dict[Shape, Source]:
    """The records to train on, of each shape.

    Raises:
      DataError: as `source`; a bucket has fewer records than a batch, with the names of all such.
    """
    if not config.data.buckets:
        return {tuple(config.data.shape): source(config, "train", data_dir)}
    found: dict[Shape, Source] = {}
    unused = []
    for shape in configuration.shapes(config):
        with contextlib.suppress(NoRecordsError):
            found[shape] = source(config, "train", data_dir, shape)
        records, size = len(found.get(shape, ())), configuration.batch_size(config, shape)
        if records < size:
            unused.append(f"{shape} has {records} records and batches of {size}")
    if unused:
        raise DataError(
            f"data.buckets: {'; '.join(unused)}, which are never read; leave these shapes out, or "
            "give smaller batches"
        )
    return found


def train_loader(config, records: Source, mesh: Mesh, shape: Shape | None = None) -> loader.Loader:
    """Of the records of one shape, by default `data.shape`."""
    shapes = configuration.shapes(config)
    shape = tuple(shape or config.data.shape)
    return loader.Loader(
        records,
        batch_size=configuration.batch_size(config, shape),
        # Buckets of as many records would otherwise go through them in the same order.
        seed=order.seed_of(config.seed, shapes.index(shape), 3) if len(shapes) > 1 else config.seed,
        flip=config.data.flip,
        threads=config.data.threads,
        prefetch=config.data.prefetch,
        sharding=batch_sharding(mesh),
        read=records.drawn(config.seed) if isinstance(records, LatentSource) else None,
        finish=texts.finish(config, mesh),
    )


def bucket_loader(config, records: Mapping[Shape, Source], mesh: Mesh) -> BucketLoader:
    """Of the records of each shape."""
    return BucketLoader(
        [
            train_loader(config, records[shape], mesh, shape)
            for shape in configuration.shapes(config)
        ],
        seed=config.seed,
        threads=config.data.threads,
        prefetch=config.data.prefetch,
        sharding=batch_sharding(mesh),
    )
