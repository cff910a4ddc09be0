"""Published convolutional networks as tables: convolutions whose batch norm is folded into them at
load, pools, and branches that are concatenated. Channels last; *S is H,W or T,H,W."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import lax

from nrdm_jax.named_tensors import select
from nrdm_jax.signatures import Array, Params

# Features are compared across machines: no bfloat16 or TF32 products.
PRECISION = lax.Precision.HIGHEST


class Convolution(NamedTuple):
    """A convolution without bias, its batch norm with running moments, ReLU.

    Attributes:
      name: of its tensors in the file, less that of the forks it is in.
      features: output channels.
      window: along each axis of space.
      stride: along each axis.
      padding: "SAME", zeros, the odd one behind (TensorFlow's rule), or "VALID".
    """

    name: str
    features: int
    window: tuple[int, ...]
    stride: int = 1
    padding: str = "SAME"


class Pool(NamedTuple):
    """Padding counts neither for the largest nor in the average.

    Attributes:
      kind: "max" or "average".
      window, strides: along each axis of space.
      padding: as a convolution's.
    """

    kind: str
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: str = "SAME"


class Fork(NamedTuple):
    """Branches of one input, concatenated along the channels.

    Attributes:
      branches: the steps of each; none hands the input on.
      name: before those of its convolutions, with its dot.
    """

    branches: "tuple[tuple[Step, ...], ...]"
    name: str = ""


Step: TypeAlias = Convolution | Pool | Fork


def convolutions(
    steps: Sequence[Step], channels: int, prefix: str = ""
) -> tuple[dict[str, tuple[int, ...]], int]:
    """({full name: (*window, inputs, features)} of a table, its output channels).

    Args:
      steps: the table.
      channels: of its input.
      prefix: of the names.
    """
    found: dict[str, tuple[int, ...]] = {}
    for step in steps:
        if isinstance(step, Convolution):
            found[prefix + step.name] = (*step.window, channels, step.features)
            channels = step.features
        elif isinstance(step, Fork):
            inner = [convolutions(b, channels, prefix + step.name) for b in step.branches]
            for shapes, _ in inner:
                found |= shapes
            channels = sum(width for _, width in inner)
    return found, channels


def load_convolutions(
    tensors: Mapping[str, np.ndarray],
    kernels: Mapping[str, tuple[int, ...]],
    *,
    weight: str,
    others: Mapping[str, tuple[int, ...]],
    epsilon: float,
    of: str,
) -> tuple[Params, dict[str, np.ndarray]]:
    """({name: {"kernel", "bias"}} with batch norms folded in, the other tensors).

    Args:
      tensors: in torch's layout: NAME.`weight` (features, inputs, *window) and NAME.bn.{weight,
        bias, running_mean, running_var}.
      kernels: of `convolutions`.
      weight: what the file calls a convolution's weight.
      others: name -> shape.
      epsilon: of the batch norms.
      of: as `select`'s.

    Raises:
      ValueError: as `select`.
    """
    shapes = dict(others)
    statistics = ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    for name, (*window, inputs, features) in kernels.items():
        shapes[f"{name}.{weight}"] = (features, inputs, *window)
        shapes |= {f"{name}.{statistic}": (features,) for statistic in statistics}
    found = select(tensors, shapes, of)
    params = {
        name: fold(
            found[f"{name}.{weight}"],
            *(found[f"{name}.{statistic}"] for statistic in statistics),
            epsilon=epsilon,
        )
        for name in kernels
    }
    return params, {name: found[name] for name in others}


def fold(
    weight: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    *,
    epsilon: float,
) -> dict[str, Array]:
    """{"kernel": (*window, I, O), "bias": (O,)}: scale (w * x - mean) / sqrt(variance + epsilon) +
    bias as one convolution; weight (O, I, *window), the others (O,)."""
    factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    kernel = np.moveaxis(weight, (0, 1), (-1, -2)) * np.broadcast_to(
        factor, (*weight.shape[2:], weight.shape[1], weight.shape[0])
    )
    return {
        "kernel": jnp.asarray(kernel, jnp.float32),
        "bias": jnp.asarray(bias - mean * factor, jnp.float32),
    }


def run(params: Params, steps: Sequence[Step], x: Array, prefix: str = "") -> Array:
    """A table's output (B, *S', C') of its input (B, *S, C), with the convolutions of `fold`."""
    for step in steps:
        if isinstance(step, Convolution):
            x = _convolve(params[prefix + step.name], step, x)
        elif isinstance(step, Pool):
            x = pool(x, step)
        else:
            branches = [run(params, branch, x, prefix + step.name) for branch in step.branches]
            x = jnp.concatenate(branches, axis=-1)
    return x


def _convolve(unit: Params, step: Convolution, x: Array) -> Array:
    axes = "DHW"[-len(step.window) :]
    y = lax.conv_general_dilated(
        x,
        unit["kernel"],
        (step.stride,) * len(step.window),
        step.padding,
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        precision=PRECISION,
    )
    return jnp.maximum(y + unit["bias"].reshape((1,) * (y.ndim - 1) + (-1,)), 0.0)


def pool(x: Array, step: Pool) -> Array:
    """(B, *S, C) -> (B, *S', C)."""
    window, strides = (1, *step.window, 1), (1, *step.strides, 1)
    if step.kind == "max":
        return lax.reduce_window(x, -math.inf, lax.max, window, strides, step.padding)
    total = lax.reduce_window(x, 0.0, lax.add, window, strides, step.padding)
    if step.padding == "VALID":
        return total / math.prod(step.window)
    ones = jnp.ones((1, *x.shape[1:-1], 1), x.dtype)
    count = lax.reduce_window(ones, 0.0, lax.add, window, strides, step.padding)
    return total / jnp.broadcast_to(count, total.shape)
