"""The programs of a run, compiled here or ahead for elsewhere, and what they cost in FLOPs."""

import jax
import jax.numpy as jnp
import numpy as np

from nrdm_jax import build, networks
from nrdm_jax import config as configuration
from nrdm_jax.sharding.mesh import batch_sharding, replicated
from nrdm_jax.signatures import Batch, Metrics, Shape
from nrdm_jax.training import flops
from nrdm_jax.training.state import TrainState


class Steps:
    """The train step, compiled ahead of time once for each shape: (state, batch) -> (state,
    metrics), and a batch of anything else than what was compiled for is an error and not a second
    compile. The metrics have `images` and `flops` of the step as well; 0 FLOPs as `flops_per_step`.

    Args:
      parts: of the run.
      dtype: of the records.
    """

    def __init__(self, parts: build.Run, dtype):
        shapes = configuration.shapes(parts.config)
        self._compiled = {shape: compiled_step(parts, dtype, shape) for shape in shapes}
        self._flops = {shape: flops_per_step(parts, shape) for shape in shapes}

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        count, *shape = batch["x"].shape
        if tuple(shape) not in self._compiled:
            raise TypeError(f"no step is compiled for {shape}; the shapes: {list(self._compiled)}")
        state, metrics = self._compiled[tuple(shape)](state, batch)
        told = {"images": np.int64(count), "flops": np.float64(self._flops[tuple(shape)])}
        return state, metrics | told


def compiled_step(parts: build.Run, dtype, shape: Shape | None = None):
    """The train step for a shape, by default `data.shape`; see `Steps`."""
    return lowered_step(parts, dtype, shape=shape).compile()


def lowered_step(
    parts: build.Run, dtype, platform: str | None = None, *, shape: Shape | None = None
):
    """The train step before its compilation, for a platform: by default the one at hand."""
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, parts.abstract_state)
    jitted = jax.jit(
        parts.train_step,
        donate_argnums=0,
        out_shardings=(state_shardings, replicated(parts.mesh)),
    )
    batch = build.abstract_batch(parts.config, parts.mesh, dtype, shape)
    return _lowered(jitted.trace(parts.abstract_state, batch), platform)


def lowered_sampler(parts: build.Run, platform: str | None = None):
    """The same of the sampler of a batch."""
    sampler = parts.task.sampler(parts.mesh)
    sharding = batch_sharding(parts.mesh)
    placed = jax.tree.map(
        lambda part: jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=sharding),
        _sampled(parts.config, sampler.batch_size),
    )
    return _lowered(sampler.jitted.trace(parts.abstract_state.ema, *placed), platform)


def _sampled(config, batch: int) -> tuple[jax.ShapeDtypeStruct, dict]:
    """Shapes of a sampler's seeds, and of what samples are given."""
    return jax.ShapeDtypeStruct((batch,), jnp.uint32), networks.given(config, batch)


def _lowered(traced, platform: str | None):
    return traced.lower(lowering_platforms=(platform,)) if platform else traced.lower()


def flops_per_step(parts: build.Run, shape: Shape | None = None) -> int:
    """Of the model, forward and backward, over a batch of a shape, by default `data.shape`; 0 where
    the program does not say, as of a solver that chooses its steps."""
    config = configuration.at_shape(parts.config, shape or parts.config.data.shape)
    apply, example = parts.task.forward(config)
    one = flops.count(apply, parts.abstract_state.params, *example)
    return flops.FORWARD_AND_BACKWARD * one * config.train.batch_size


def flops_per_batch(parts: build.Run) -> int:
    """Of the sampler, over a batch; evaluations of the network by guidance and of the solver
    included. 0 as `flops_per_step`."""
    sampler = parts.task.sampler(parts.mesh, apply=parts.task.forward(parts.config)[0])
    one = flops.count(sampler.sample, parts.abstract_state.ema, *_sampled(parts.config, 1))
    return sampler.batch_size * one


def penalty_cost(parts: build.Run) -> float:
    """FLOPs of a train step over those of the same step without the sensitivity penalty."""
    plain = parts.config.copy_and_resolve_references()
    plain.optim.sensitivity_penalty = 0.0
    batch = build.abstract_batch(parts.config, parts.mesh, jnp.float32)
    each = (flops.count(p.train_step, p.abstract_state, batch) for p in (parts, build.run(plain)))
    return next(each) / next(each)


def peak_flops(config) -> float | None:
    """Of one device, by the config or the table; None where unknown, as on CPUs."""
    tera = config.log.peak_tflops or flops.PEAK_TFLOPS.get(jax.devices()[0].device_kind)
    return tera * 1e12 if tera else None
