"""A stack: L blocks of one form, run by one scan over stacked parameters.

The program, and so its compile time, does not grow with depth. What the backward pass keeps is the
choice of a memory mode; how many streams the trunk has belongs to the model.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from nrdm_jax.models import memory, reversible
from nrdm_jax.models.conditioning import Condition
from nrdm_jax.models.probe import Streams, health, tap
from nrdm_jax.models.unit import VARIANTS, ResidualUnit
from nrdm_jax.sharding import axes, pipeline
from nrdm_jax.sharding.axes import constrain
from nrdm_jax.signatures import Array


class Passed(NamedTuple):
    """What comes out of a stack.

    Attributes:
      streams: after the last block.
      health: (L, units of a block, 2), see `probe.health`, where taps were given.
      kept: the trunk after each block, (L, B, *S, D), where asked for.
    """

    streams: Streams
    health: Array | None
    kept: Array | None


def merged(streams: Streams) -> Array:
    """The trunk as one (B, *S, D): the mean of two streams."""
    return streams[0] if len(streams) == 1 else (streams[0] + streams[1]) / 2


def _keep_first_half(key, shape, dtype=jnp.float32):
    """[I; 0]: of [z, skip], z alone, so that a stack starts as the identity."""
    return jnp.eye(shape[0], shape[1], dtype=dtype)


class Block(nn.Module):
    """(streams, condition, taps (units,), skip) -> (streams, health (units, 2) or None).

    Taps and health are those of each unit's output. Each unit takes the streams (a, b) to
    (b, unit(a; b)): it writes the one and reads the other. A single stream is both.

    Attributes:
      units: (name, function that makes the unit), in their order. (A module among the attributes
        would become a child under the attribute's name.)
      project: z <- W [z, skip] comes first, W = [I; 0] at start: the skip of U-ViT and U-Net.
      prefix: leading tokens that are no patches.
    """

    units: tuple[tuple[str, Callable[..., ResidualUnit]], ...]
    project: bool = False
    prefix: int = 0

    @nn.compact
    def __call__(
        self,
        streams: Streams,
        condition: Condition,
        taps: Array | None = None,
        skip: Array | None = None,
    ) -> tuple[Streams, Array | None]:
        if self.project:
            both = jnp.concatenate([streams[0], cast(Array, skip)], axis=-1)
            width = streams[0].shape[-1]
            streams = (
                nn.Dense(width, kernel_init=_keep_first_half, name="project")(both),
            )  # fmt: skip
        seen = []
        for i, (name, unit) in enumerate(self.units):
            new = unit(name=name)(streams[0], streams[-1], condition, skip)
            streams = (*streams[1:], new)
            # Behind the unit: what reads the trunk there, the next unit or a skip, reads the tap.
            if taps is not None:
                streams = tap(streams, taps[i])
                seen.append(health(streams, self.prefix))
        return streams, jnp.stack(seen) if seen else None


def mirrored(units, skip: str, prefix: int = 0) -> Block:
    """The block of these units; with a skip, `inside` or `project`, the one that reads it."""
    if skip == "inside":
        (name, first), *rest = units
        units = [(name, functools.partial(first, reads_skip=True)), *rest]
    return Block(tuple(units), skip == "project", prefix, parent=None)


def stacked(
    block: Block, count: int, streams: Streams, condition: Condition, skip: Array | None = None
) -> Callable[[Array], Any]:
    """key -> the parameters of `count` blocks for such inputs, (count, ...) each."""

    def init(key):
        arguments = jax.tree.map(
            lambda x: jnp.zeros((1, *x.shape[1:]), x.dtype), (streams, condition, skip)
        )
        streams_1, condition_1, skip_1 = arguments
        with axes.use(None, {}):  # one example cannot be divided
            return block.init(key, streams_1, condition_1, None, skip_1)["params"]

    return lambda key: jax.vmap(init)(jax.random.split(key, count))


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How micro-batches go through stages, on a mesh that divides the blocks: `pipeline.run`."""

    micro_batches: int = 0
    repeats: int = 1


class Stack(nn.Module):
    """(streams, condition, taps, skips) -> Passed. Parameters: those of one block, stacked.

    Taps are (L, units of a block), see `probe.tap`, in the order of depth, as all that comes out.
    Skips are (L, B, *S, D), in the order of the stack that they come from. Blocks that read them
    run from the last to the first: each lies beside its partner, and no skip is held twice, in one
    order and in the other.

    Attributes:
      block: unbound.
      depth: number of blocks, L.
      memory: `reversible`, or a mode of `memory.scan`.
      remat_policy: a key of `memory.POLICIES`.
      keep: return the trunk after each block.
      schedule: on a mesh with stages.

    Raises:
      ValueError: the memory mode is reversible and the stack is not: it has one stream, keeps the
        trunk, reads skips, or its units are not additive. As `memory.scan` for the others.
    """

    block: Block
    depth: int
    memory: str = "none"
    remat_policy: str = "nothing"
    keep: bool = False
    schedule: Schedule = Schedule()

    @nn.compact
    def __call__(
        self,
        streams: Streams,
        condition: Condition,
        taps: Array | None = None,
        skips: Array | None = None,
    ) -> Passed:
        block = self.block.clone(parent=None, name=None)

        skip = None if skips is None else skips[0]
        params = self.param("blocks", stacked(block, self.depth, streams, condition, skip))
        if self.memory == "reversible":
            self._check_reversible(block, streams, skips)
            units = tuple((name, _pure(unit(parent=None))) for name, unit in block.units)
            streams, seen = reversible.scan(units, block.prefix, params, streams, condition, taps)
            return Passed(streams, seen, None)

        def body(streams, x, condition=condition):
            params, taps, skip = x
            streams = tuple(map(_laid_out, streams))
            streams, seen = block.apply({"params": params}, streams, condition, taps, skip)
            return streams, (seen, merged(streams) if self.keep else None)

        if pipeline.stages() > 1:
            if self.keep or skips is not None:
                raise ValueError("mesh.stage is above 1, but the trunk between blocks must be kept")
            return self._in_stages(body, streams, condition, (params, taps, None))

        backwards = skips is not None
        if backwards and taps is not None:
            taps = taps[::-1]
        streams, (seen, kept) = memory.scan(
            body, streams, (params, taps, skips), self.memory, self.remat_policy, backwards
        )
        if backwards:
            seen, kept = jax.tree.map(lambda y: y[::-1], (seen, kept))
        return Passed(streams, seen, kept)

    def _in_stages(self, body, streams: Streams, condition: Condition, xs) -> Passed:
        mode = self.memory

        def stage(carry, xs):
            streams, condition = carry
            streams, ys = memory.scan(
                functools.partial(body, condition=condition),
                streams,
                xs,
                "remat" if mode == "sqrt" else mode,
                self.remat_policy,
            )
            return (streams, condition), ys

        # A stage is a group of blocks already: of two levels, it is the outer one.
        work = memory.checkpoint(stage) if mode == "sqrt" else stage
        (streams, _), (seen, _) = pipeline.run(
            work,
            (streams, condition),
            xs,
            micro_batches=self.schedule.micro_batches,
            repeats=self.schedule.repeats,
        )
        return Passed(streams, seen, None)

    def _check_reversible(self, block: Block, streams: Streams, skips: Array | None) -> None:
        units = [unit(parent=None) for _, unit in block.units]
        for refused, reason in (
            (len(streams) != 2, "a unit of one stream cannot be inverted"),
            (self.keep or skips is not None, "the trunk between blocks must be kept"),
            (
                not all(VARIANTS[unit.variant].additive for unit in units),
                f"units of variant {units[0].variant} are not z + something",
            ),
        ):
            if refused:
                raise ValueError(f"memory is reversible, but {reason}")


def _laid_out(z: Array) -> Array:
    return constrain(z, "activation_batch", "activation_length", *(None,) * (z.ndim - 2))


def _pure(unit: ResidualUnit):
    """A unit as a function of its params."""

    def apply(params: Any, z: Array, u: Array, condition: Condition) -> Array:
        return cast(Array, unit.apply({"params": params}, _laid_out(z), _laid_out(u), condition))

    return apply
