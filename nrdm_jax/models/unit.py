"""THE residual unit, of which every stack is made.

    z_{i+1} = z_i + alpha_i * F_i(z_i, c) + beta_i        (Neural-RDM, arXiv 2406.13215)

F_i is one branch (attention, MLP, convolution, ...), alpha_i and beta_i learnable gates, z the
trunk (B, *S, D), which stays in float32 whatever the branch computes in. A residual structure is
one row of `VARIANTS`: which gates it has, and how they join z and F.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from nrdm_jax.models.conditioning import Condition
from nrdm_jax.models.norms import layer_norm, trunk_norm
from nrdm_jax.signatures import Array


@dataclasses.dataclass(frozen=True)
class Gates:
    """How the gates of a stack of `units` units are parameterised.

    Attributes:
      units: residual units in the whole stack; bounds and start values depend on it.
      shape: `channel`, a value per channel of the trunk, or `scalar`.
      condition: `static`, one value for all inputs; `cond`, g(c) = g + W SiLU(c), W of the unit's
        own and zero at start; `cond_shared`, the same with one W for the whole stack.
      alpha, beta: whether the gate exists at all.
      alpha_start: `auto` (zero where conditional, so that the stack starts as the identity, else
        inv_sqrt_units), `zero`, `one`, `inv_sqrt_units` = 1/sqrt(units), or a number.
      alpha_bound: of `gated`, alpha = alpha_raw / sqrt(units). The alphas of all units move by the
        learning rate a step, and together: unbounded, what a stack writes moves by `units` times as
        much. The bound is depth-muP's branch multiplier and rate (arXiv 2310.02244), on the gate.
      alpha_offset, alpha_scale: alpha = offset + scale * parameter.
      beta_start: value of beta at start; `auto` is zero, but for `mv_split`.
      beta_bound: beta = beta_raw / units. A beta shared by all tokens writes into the token mean
        only, and those of all units add up: unbounded, it is the direction in which very deep
        transformers collapse (arXiv 2605.06169). The optimizer moves beta_raw ten times slower as
        well.
      prefix: leading tokens of the trunk that are no patches, see `dit.DiT`.
    """

    units: int
    shape: str = "channel"
    condition: str = "cond"
    alpha: bool = True
    beta: bool = True
    alpha_start: str | float = "auto"
    alpha_bound: bool = True
    alpha_offset: float = 0.0
    alpha_scale: float = 1.0
    beta_start: str | float = "auto"
    beta_bound: bool = True
    prefix: int = 0

    def alpha_value(self) -> float:
        """The start value as a number.

        Raises:
          ValueError: `alpha_start` is neither a known name nor a number.
        """
        named = {"zero": 0.0, "one": 1.0, "inv_sqrt_units": self.units**-0.5}
        named["auto"] = named["inv_sqrt_units" if self.condition == "static" else "zero"]
        return _number("alpha_start", self.alpha_start, named)

    def beta_value(self) -> float:
        """The same of beta."""
        return _number("beta_start", self.beta_start, {"auto": 0.0})


def _number(field: str, value: str | float, named: dict[str, float]) -> float:
    if value in named:
        return named[value]  # type: ignore[index]
    try:
        return float(value)
    except ValueError:
        raise ValueError(
            f"{field} is {value!r}; choose one of {', '.join(named)} or a number"
        ) from None


class Variant(NamedTuple):
    """One residual structure.

    Attributes:
      join: (z, u, branch, alpha, beta, gates) -> the next z. z is the trunk that is written, u what
        the branch reads: z itself, or the other stream of a stack of two. `branch` is F, a function
        of u; a gate that is absent is None.
      gates: the gates this structure has, given those that were asked for.
      kernel_gain: units -> factor on the start of the branches' value, output and MLP kernels.
      additive: the next z is z + delta(u), so that z can be had back from it.
    """

    join: Callable[..., Array]
    gates: Callable[[Gates], Gates]
    kernel_gain: Callable[[int], float] = lambda units: 1.0
    additive: bool = True


def token_mean(z: Array, prefix: int = 0) -> Array:
    """Jz: the mean over all tokens (B, *S, D) -> (B, 1, .., D), an example at a time.

    The first `prefix` tokens are another modality and have a mean of their own; then the result has
    the shape of z.
    """
    if prefix:
        parts = (z[:, :prefix], z[:, prefix:])
        means = [jnp.broadcast_to(token_mean(part), part.shape) for part in parts]
        return jnp.concatenate(means, axis=1)
    return jnp.mean(z, axis=tuple(range(1, z.ndim - 1)), keepdims=True)


def gated(z, u, branch, alpha, beta, gates):
    """z + (alpha * F(u) + beta) (arXiv 2406.13215); with alpha(c) zero at start and not bounded,
    and beta off: adaLN-Zero."""
    delta = alpha * branch(u)
    return z + (delta if beta is None else delta + beta)


def resnet(z, u, branch, alpha, beta, gates):
    """z + F(u) (He et al., arXiv 1512.03385)."""
    return z + branch(u)


def adaln(z, u, branch, alpha, beta, gates):
    """z + F(alpha * u + beta): the gates before the branch, and not behind it."""
    inside = alpha * u
    return z + branch(inside if beta is None else inside + beta)


def input_scale(z, u, branch, alpha, beta, gates):
    """alpha * z + F(u) + beta: the gate on the trunk itself."""
    out = alpha * z + branch(u)
    return out if beta is None else out + beta


def deepnorm(z, u, branch, alpha, beta, gates):
    """LN(a * z + F(u)), a = units^(1/4) (Wang et al., arXiv 2203.00555, an encoder's constants)."""
    return layer_norm(gates.units**0.25 * z + branch(u))


def mv_split(z, u, branch, alpha, beta, gates):
    """RMSNorm(z + beta * P F + alpha * J(F - z)), P = I - J (arXiv 2605.06169).

    What a branch says to all tokens alike and what it says to each have gains of their own.
    """
    f = branch(u)
    mean = token_mean(f, gates.prefix)
    return trunk_norm(z + (beta * (f - mean) + alpha * (mean - token_mean(z, gates.prefix))))


def _gated_gates(gates: Gates) -> Gates:
    return dataclasses.replace(gates, alpha_scale=gates.units**-0.5 if gates.alpha_bound else 1.0)


def _adaln_gates(gates: Gates) -> Gates:
    start = "one" if gates.alpha_start == "auto" else gates.alpha_start
    return dataclasses.replace(gates, alpha_start=start)


def _mv_split_gates(gates: Gates) -> Gates:
    # Its authors' two depths: 1 at 400 blocks (800 units), 0.03 at 1,000; a power law between.
    start = min(1.0, (gates.units / 800) ** (math.log(0.03) / math.log(2000 / 800)))
    beta_start = start if gates.beta_start == "auto" else gates.beta_start
    return dataclasses.replace(
        gates,
        shape="channel",
        condition="static",
        alpha=True,
        beta=True,
        alpha_start="zero",
        beta_start=beta_start,
        beta_bound=False,
    )


# The first five are those the paper compares.
VARIANTS = {
    "gated": Variant(gated, _gated_gates),
    "adaln": Variant(adaln, _adaln_gates),
    # alpha = 1 + a / units with a = 0 at start: its product over the stack stays within e^max(a).
    "input_scale": Variant(
        input_scale,
        lambda gates: dataclasses.replace(
            gates, alpha_start="zero", alpha_offset=1.0, alpha_scale=1.0 / gates.units
        ),
        additive=False,
    ),
    "resnet": Variant(resnet, lambda gates: dataclasses.replace(gates, alpha=False, beta=False)),
    # ReZero (Bachlechner et al., arXiv 2003.04887): a learnt scalar that starts at zero.
    "rezero": Variant(
        gated,
        lambda gates: dataclasses.replace(
            gates, shape="scalar", condition="static", alpha_start="zero", beta=False
        ),
    ),
    # LayerScale (Touvron et al., arXiv 2103.17239): a learnt value a channel that starts small.
    "layerscale": Variant(
        gated,
        lambda gates: dataclasses.replace(
            gates, shape="channel", condition="static", alpha_start=1e-4, beta=False
        ),
    ),
    "deepnorm": Variant(
        deepnorm,
        lambda gates: dataclasses.replace(gates, alpha=False, beta=False),
        kernel_gain=lambda units: (4 * units) ** -0.25,
        additive=False,
    ),
    "mv_split": Variant(mv_split, _mv_split_gates, additive=False),
}


class Gate(nn.Module):
    """One gate: () -> an array that broadcasts against the trunk.

    Attributes:
      shape, condition: as in `Gates`.
      start: value for every input, at start.
      scale, offset: gate = offset + scale * parameter.
    """

    shape: str
    condition: str
    start: float
    scale: float = 1.0
    offset: float = 0.0

    @nn.compact
    def __call__(self, z: Array, condition: Condition) -> Array:
        features = z.shape[-1] if self.shape == "channel" else 1
        bias = self.param(
            "bias", nn.initializers.constant(self.start / self.scale), (features,), jnp.float32
        )
        if self.condition == "static":
            return (self.offset + self.scale * bias).reshape((1,) * (z.ndim - 1) + (features,))
        if self.condition == "cond":
            kernel = self.param(
                "kernel", nn.initializers.zeros, (condition.e_BD.shape[-1], features), jnp.float32
            )
            projected = condition.e_BD @ kernel
        else:
            projected = condition.shared[str(self.name)]
        gate = self.offset + self.scale * (projected + bias[None, :])
        return gate.reshape(gate.shape[0], *(1,) * (z.ndim - 2), features)


def gate_makers(variant: str, gates: Gates) -> dict[str, Callable[..., Gate]]:
    """{`alpha`, `beta`: name -> the module}, of the gates that units of this variant have."""
    gates = VARIANTS[variant].gates(gates)
    makers: dict[str, Callable[..., Gate]] = {}
    if gates.alpha:
        makers["alpha"] = functools.partial(
            Gate,
            gates.shape,
            gates.condition,
            gates.alpha_value(),
            gates.alpha_scale,
            gates.alpha_offset,
        )
    if gates.beta:
        scale = 1.0 / gates.units if gates.beta_bound else 1.0
        makers["beta"] = functools.partial(
            Gate, gates.shape, gates.condition, gates.beta_value(), scale
        )
    return makers


class ResidualUnit(nn.Module):
    """(z, u (B, *S, D), condition, skip) -> the next z, through one branch and its gates.

    Attributes:
      branch: (u, condition) -> (B, *S, D) in any float type.
      gates: the gates of the stack; the variant may remove some.
      variant: a key of `VARIANTS`.
      reads_skip: the branch reads [u, gamma * skip] on the channel axis, gamma one at start: the
        mirrored unit of a U-shaped stack, with its skip `inside`.
    """

    branch: nn.Module
    gates: Gates
    variant: str = "gated"
    reads_skip: bool = False

    @nn.compact
    def __call__(self, z: Array, u: Array, condition: Condition, skip: Array | None = None):
        makers = gate_makers(self.variant, self.gates)
        gate = {name: make(name=name)(z, condition) for name, make in makers.items()}
        if self.reads_skip:
            assert skip is not None
            gamma = self.param("gamma", nn.initializers.ones, skip.shape[-1:], jnp.float32)
            skip = gamma.reshape((1,) * (skip.ndim - 1) + (-1,)) * skip

        def branch(u):
            if skip is not None and self.reads_skip:
                u = jnp.concatenate([u, skip], axis=-1)
            # Named for the memory mode that keeps branches, see `memory.POLICIES`.
            return checkpoint_name(self.branch(u, condition), "branch").astype(jnp.float32)

        join = VARIANTS[self.variant].join
        return join(z, u, branch, gate.get("alpha"), gate.get("beta"), self.gates)
