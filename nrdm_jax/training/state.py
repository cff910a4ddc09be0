"""Everything that a training run carries from step to step."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from nrdm_jax.diffusion.importance import Importance
from nrdm_jax.sharding import partition
from nrdm_jax.signatures import Array, Params
from nrdm_jax.training import power_ema


class TrainState(struct.PyTreeNode):
    """Attributes:
    step: () int32, steps done, skipped ones included.
    key: (2,) uint32, the bits of the key all training noise is drawn from; never changes.
    params, ema: the weights and their moving average, float32.
    opt: the optimizer's state.
    importance: by which times are drawn, see `importance.History`; as a rule nothing.
    averages: by the names of their widths, see `power_ema`; as a rule there are none.
    images: () uint32 examples seen, at most 2^32 - 1, where batches differ in size; as a rule
      nothing.
    """

    step: Array
    key: Array
    params: Params
    ema: Params
    opt: Any
    importance: Any = ()
    averages: dict[str, Params] = struct.field(default_factory=dict)
    images: Any = ()


def create(
    init: Callable[[Array], Params],
    optimizer: optax.GradientTransformation,
    seed: int,
    *,
    importance: Importance | None = None,
    widths: Sequence[float] = (),
    counts_images: bool = False,
) -> TrainState:
    """A fresh state; the averages start at the weights. Pure, so that it can be jitted or shaped.
    `counts_images`: batches will differ in size."""
    init_key, step_key = jax.random.split(jax.random.key(seed))
    params = init(init_key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(step_key),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt=optimizer.init(params),
        importance=importance.start() if importance else (),
        averages=power_ema.start(params, widths),
        images=jnp.zeros((), jnp.uint32) if counts_images else (),
    )


def create_sharded(
    init: Callable[[Array], Params],
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh,
    zero1: bool = False,
    *,
    importance: Importance | None = None,
    widths: Sequence[float] = (),
    counts_images: bool = False,
) -> tuple[TrainState, Callable[[], TrainState], Callable[[Params], TrainState]]:
    """The abstract state, with the sharding of every leaf, a function that allocates it, and one
    that begins with weights that are given.

    Args:
      zero1: see `partition.shardings`.
      importance: of times that are drawn by it.
      widths: of the power-function averages.
      counts_images: see `create`.

    Each leaf is born in its shards: nothing ever holds the whole state on one device.
    """

    make = functools.partial(
        create,
        optimizer=optimizer,
        seed=seed,
        importance=importance,
        widths=widths,
        counts_images=counts_images,
    )

    def fresh() -> TrainState:
        return make(init)

    def begun(params: Params) -> TrainState:
        return make(lambda _: params)

    shapes = jax.eval_shape(fresh)
    shardings = partition.shardings(shapes, mesh, zero1)
    abstract = partition.abstract(shapes, shardings)
    jitted = (jax.jit(f, out_shardings=shardings) for f in (fresh, begun))
    return abstract, *jitted


def save_items(state: TrainState) -> dict:
    """The state as the items of a checkpoint; what a run does not have is no item of it."""
    items = {
        "params": state.params,
        "ema": state.ema,
        "opt": state.opt,
        "loop": {"step": state.step, "key": state.key},
    }
    if not isinstance(state.images, tuple):
        items["loop"]["images"] = state.images
    optional = {"importance": state.importance, "averages": state.averages}
    return items | {name: tree for name, tree in optional.items() if tree}


def state_of(items: dict) -> TrainState:
    """The inverse of `save_items`."""
    return TrainState(
        step=items["loop"]["step"],
        key=items["loop"]["key"],
        params=items["params"],
        ema=items["ema"],
        opt=items["opt"],
        importance=items.get("importance", ()),
        averages=items.get("averages", {}),
        images=items["loop"].get("images", ()),
    )
