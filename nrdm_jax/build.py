"""From a config to parts, where models meet diffusion and data. Every part takes plain arguments;
what stands above reads no more of the config than when and where to call them."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from nrdm_jax import config as configuration
from nrdm_jax.data import loader
from nrdm_jax.data.sources import Source, open_source
from nrdm_jax.diffusion import (
    grids,
    guidance,
    likelihood,
    losses,
    noise,
    predictions,
    times,
    weights,
)
from nrdm_jax.diffusion.importance import Importance
from nrdm_jax.diffusion.samplers.table import Solver, make_sampler
from nrdm_jax.diffusion.schedules import Path, make_path, scaled_input, time_at_log_snr
from nrdm_jax.evaluation import linear_denoiser
from nrdm_jax.evaluation.features import FeatureNet, open_net
from nrdm_jax.models import fused_attention, quantized
from nrdm_jax.models.continuous import ContinuousDiT
from nrdm_jax.models.denoiser import Denoiser
from nrdm_jax.models.dit import DiT
from nrdm_jax.models.memory import check_offload
from nrdm_jax.models.sizes import DIT
from nrdm_jax.models.stack import Schedule
from nrdm_jax.models.uncertainty import Uncertainty
from nrdm_jax.models.unet import UNet
from nrdm_jax.models.unit import VARIANTS
from nrdm_jax.models.uvit import UViT
from nrdm_jax.sampling.generate import Generator, make_sample_fn
from nrdm_jax.sharding import axes, rules
from nrdm_jax.sharding.mesh import batch_devices, batch_sharding, check_batch, make_mesh, replicated
from nrdm_jax.signatures import Array, Params
from nrdm_jax.training import objectives, step
from nrdm_jax.training.optimizer import Optimizer, make_optimizer, schedule
from nrdm_jax.training.state import TrainState, create, create_sharded


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run that need no data and no directory.

    Attributes:
      config: validated.
      mesh: over all devices.
      apply: (params, x_t, t, label) -> output.
      path: of the diffusion.
      schedule: step -> learning rate.
      train_step: pure, (state, batch) -> (state, metrics).
      abstract_state: shapes, types and shardings of the state.
      fresh_state: allocates it.
    """

    config: Any
    mesh: Mesh
    apply: objectives.ApplyFn
    path: Path
    schedule: optax.Schedule
    train_step: step.TrainStep
    abstract_state: TrainState
    fresh_state: Callable[[], TrainState]


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
    _trajectory(config, path)  # refused now, and not after the first thousand steps
    init, apply = model(config, mesh, path)
    rate, optimizer = optimizing(config)
    train_step = step.make_train_step(
        objective(config, apply, path),
        optimizer.transform,
        batch_size=config.train.batch_size,
        micro_batches=config.train.micro_batches,
        ema_halflife_images=config.train.ema_halflife_images,
        averaged=optimizer.averaged,
        units=network(config).units if probed(config) else 0,
        penalty=config.optim.sensitivity_penalty,
        penalty_examples=config.optim.sensitivity_examples,
        importance=importance(config, path),
    )
    state, fresh = create_sharded(
        init,
        optimizer.transform,
        config.seed,
        mesh,
        config.mesh.zero1,
        importance=importance(config, path),
        widths=config.train.ema_widths,
    )
    return Run(config, mesh, apply, path, rate, _on(mesh, train_step), state, fresh)


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


UNCERTAINTY = "uncertainty"  # in the tree of weights: what is no network's


NETWORKS: dict[str, type[Denoiser]] = {
    "dit": DiT,
    "uvit": UViT,
    "unet": UNet,
    "continuous": ContinuousDiT,
}


def network(config) -> Denoiser:
    """The module that `config.model` describes: its attributes are fields of the same name."""
    m = config.model
    kind = NETWORKS[m.name]
    settings = {f.name: m[f.name] for f in dataclasses.fields(kind) if f.name in m}
    settings |= DIT[m.size] if m.size else {}
    settings |= {
        "name": None,  # Flax's, of a submodule
        "shape": tuple(config.data.shape),
        "patch": configuration.patch_of(config),
        "num_classes": config.data.num_classes,
    }
    if kind is DiT:
        settings["schedule"] = Schedule(config.pipeline.micro_batches, config.pipeline.repeats)
    return kind(**settings)


def model(
    config, mesh: Mesh | None = None, path: Path | None = None
) -> tuple[Callable[[Array], Params], objectives.ApplyFn]:
    """(init, apply) of the network, its input scaled as the path asks for. With
    `diffusion.uncertainty` the weights have those of that head beside, which `apply` does not see.
    """
    net, with_uncertainty = network(config), config.diffusion.uncertainty
    x, t, label = example(config, 1)

    def init(key: Array) -> Params:
        zeros = [jnp.zeros(part.shape, part.dtype) for part in (x, t, label)]
        params = net.init(key, *zeros)["params"]
        if with_uncertainty:
            params = {**params, UNCERTAINTY: Uncertainty().init(key, zeros[1])["params"]}
        return params

    def apply(params: Params, x_t: Array, t: Array, label: Array, taps: Array | None = None):
        x_t = x_t if path is None else scaled_input(path, x_t, t)
        return net.apply({"params": params}, x_t, t, label, taps)

    return init, _on(mesh, apply) if mesh is not None else apply


def uncertainty(params: Params, log_snr: Array) -> Array:
    """u (B,) of those weights at a log SNR (B,)."""
    u = Uncertainty().apply({"params": params[UNCERTAINTY]}, log_snr)
    return cast(Array, u)


def readouts(config, mesh: Mesh, path: Path, after: tuple[int, ...]) -> objectives.ApplyFn:
    """(params, x_t, t, label) -> what the head makes of the trunk after so many blocks each,
    (len(after), B, *S, C)."""
    # A forward pass keeps nothing for a backward one, whatever the run's memory mode was.
    net = network(config).clone(memory="none", remat_policy="nothing")

    def apply(params: Params, x_t: Array, t: Array, label: Array):
        return net.apply({"params": params}, scaled_input(path, x_t, t), t, label, after=after)

    return _on(mesh, apply)


def probed(config) -> bool:
    """Whether the train step measures the units' sensitivity."""
    return bool(config.log.sensitivity_every or config.optim.sensitivity_penalty)


def example(config, batch: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes of the network's arguments x_t, t, label."""
    return (
        jax.ShapeDtypeStruct((batch, *config.data.shape), jnp.float32),
        jax.ShapeDtypeStruct((batch,), jnp.float32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
    )


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
        null_label=config.data.num_classes,
        label_dropout=config.model.label_dropout,
        scale=config.data.scale,
        shift=config.data.shift,
        variance_weight=d.variance_weight if config.model.learn_variance else 0.0,
        uncertainty=uncertainty if d.uncertainty else None,
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
        slow_beta=VARIANTS[config.model.variant].gates(network(config).gates).beta_bound,
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
    return {
        "x": jax.ShapeDtypeStruct((size, *config.data.shape), dtype, sharding=sharding),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32, sharding=sharding),
    }


def abstract_state(config) -> TrainState:
    """Shapes and types of the state, on no mesh."""
    init, _ = model(config)
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


def heldout_batches(config, records: Source, mesh: Mesh, limit: int = 0):
    """A function that yields the held-out records once, in order."""
    return functools.partial(
        loader.in_order,
        records,
        config.evaluate.batch_size,
        batch_sharding(mesh),
        limit=limit,
    )


def level_times(config, path: Path) -> tuple[float, ...]:
    """The time of each level of `evaluate.log_snr`. Raises as `time_at_log_snr`."""
    return tuple(time_at_log_snr(path, level) for level in config.evaluate.log_snr)


def level_sums(config, apply: objectives.ApplyFn, path: Path, mesh: Mesh):
    """Jitted (params, x, label, mask, seeds) -> sums of loss and x0 error at each level."""
    times_at = level_times(config, path)

    def sums(params, x, label, mask, seeds):
        def denoise(x_t, t, label):
            return apply(params, x_t, t, label)

        x0 = objectives.to_model_range(x, config.data.scale, config.data.shift)
        return losses.level_sums(
            denoise, path, config.diffusion.prediction, times_at, x0, label, mask, seeds
        )

    return jax.jit(sums, out_shardings=replicated(mesh))


def bits_sums(
    config, apply: objectives.ApplyFn, path: Path, mesh: Mesh, *, probes: int, steps: int
):
    """Jitted (params, x, label, mask, seeds) -> sums of the unmasked examples' bits per number, and
    of their squares: exact likelihoods under the label, pixels dequantised by even noise.

    Args:
      probes: of the divergence, 0: exact.
      steps: see `likelihood.bits_per_dim`.
    """
    shape, prediction = tuple(config.data.shape), config.diffusion.prediction
    pixel = 2 / 255 if record_dtype(config) == jnp.uint8 else config.data.scale

    def sums(params, x, label, mask, seeds):
        def predict(x_t, t):
            output = apply(params, x_t, t, label)[..., : shape[-1]]
            return predictions.to_x0_eps(path, prediction, output, x_t, t)

        x0 = objectives.to_model_range(x, config.data.scale, config.data.shift)
        if x.dtype == jnp.uint8:
            x0 = x0 + pixel * (noise.uniform_of_seeds(seeds, shape) - 0.5)
        divergence = (
            likelihood.hutchinson(noise.signs_of_seeds(seeds, shape, probes))
            if probes
            else likelihood.exact
        )
        bits = likelihood.bits_per_dim(predict, path, x0, divergence, steps=steps, pixel=pixel)
        bits = jnp.where(mask, bits, 0.0)
        return jnp.sum(bits), jnp.sum(bits**2)

    return jax.jit(sums, out_shardings=replicated(mesh))


def linear_level_sums(config, path: Path, mesh: Mesh):
    """The same for a `LinearDenoiser` in the place of the params."""

    def apply(denoiser, x_t, t, label):
        # All examples of a level have one time.
        x0, eps = linear_denoiser.estimate_x0(denoiser, x_t, path.alpha(t[0]), path.sigma(t[0]))
        return predictions.target(path, config.diffusion.prediction, x0, eps, t)

    return level_sums(config, apply, path, mesh)


def example_blocks(
    config, records: Source, numbers: np.ndarray | None = None, block: int = 4096
) -> Iterator[np.ndarray]:
    """These records, by default all, in the network's range, (n, *S, C) float32 on the host, a
    block at a time."""
    numbers = np.arange(len(records)) if numbers is None else numbers
    for start in range(0, len(numbers), block):
        x, _ = records.gather(numbers[start : start + block])
        yield np.asarray(objectives.to_model_range(x, config.data.scale, config.data.shift))


def _trajectory(config, path: Path, steps: int | None = None) -> tuple[Solver, Array]:
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
    _, times_at = _trajectory(config, path, steps)
    if config.sample.sampler == "dopri5":
        return jnp.linspace(times_at[0], times_at[-1], count)
    if not 2 <= count <= len(times_at):
        raise ValueError(
            f"--trajectory={count} of a sampler of {len(times_at)} steps; give 2 to "
            f"{len(times_at)}, or more --steps"
        )
    return times_at[np.linspace(0, len(times_at) - 1, count).round().astype(int)]


def _guide(config, path: Path, scale: float):
    """(network, a weaker one or none) -> the guided network."""
    c = config.sample
    by_time = guidance.within(path, scale, *c.guidance_interval) if c.guidance_interval else scale

    def guide(denoise, weaker=None):
        if weaker is None:
            null = config.data.num_classes
            denoise = guidance.classifier_free(denoise, null, by_time, c.guidance_rescale)
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
    solve, times_at = _trajectory(config, path, steps)
    sample = make_sample_fn(
        apply,
        path,
        config.diffusion.prediction,
        shape=tuple(config.data.shape),
        solve=solve,
        times=times_at,
        guide=_guide(config, path, c.guidance if scale is None else scale),
        weaker=weaker,
        learned_variance=(
            c.sampler == "ddpm"
            and config.model.learn_variance
            and config.diffusion.variance_weight > 0
        ),
        preview_times=preview_times,
    )
    return Generator(sample, mesh, sample_batch_size(config, mesh))


# Bytes of a batch's trunk on a CPU. Guidance doubles it, and the hidden channels of a unit are four
# times that: half of 32 MiB of L3 holds them. In larger batches an image costs up to a fifth more,
# in smaller ones no less (python -m benchmarks.sampling_speed --batch_size=16).
CPU_TRUNK_BYTES = 2**21


def sample_batch_size(config, mesh: Mesh) -> int:
    """Examples drawn at a time, in whole parts for each of the devices: `sample.batch_size`, or
    what its 0 stands for."""
    size, parts = config.sample.batch_size, batch_devices(mesh)
    if not size:
        size = 64
        if mesh.devices.flat[0].platform == "cpu":
            fitting = max(1, CPU_TRUNK_BYTES // (4 * network(config).trunk_size))
            # A power of two: what is left of a usual number of samples fills its batch as well.
            size = min(size, parts * 2 ** (fitting.bit_length() - 1))
        if mesh.shape["stage"] > 1:
            parts *= config.pipeline.micro_batches or mesh.shape["stage"]
    return -(-size // parts) * parts


def feature_net(config, name: str | None = None, weights: str | None = None) -> FeatureNet:
    """By default the config's; raises as `features.open_net`."""
    c = config.evaluate
    if name is None or name == c.net:
        weights = weights or c.weights
    return open_net(name or c.net, weights)


def drawing(config, steps: int | None = None, scale: float | None = None) -> dict:
    """What samples depend on beside weights, seeds and labels, as it is written into results; what
    is not given is the config's."""
    settings = configuration.to_dict(config)["sample"]
    for name in ("every", "examples", "batch_size"):
        del settings[name]
    given = {"steps": steps, "guidance": scale}
    return {"sampler": settings | {k: v for k, v in given.items() if v is not None}}


def _on(mesh: Mesh, f: Callable) -> Callable:
    """`f`, traced with the model's constraints meaning this mesh."""

    @functools.wraps(f)
    def traced(*arguments):
        with axes.use(mesh, rules.RULES):
            return f(*arguments)

    return traced
