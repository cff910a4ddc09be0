"""THE residual unit, of which every stack is made.

    z_{i+1} = z_i + alpha_i * F_i(z_i, c) + beta_i        (Neural-RDM, arXiv 2406.13215)

F_i is one branch (attention, MLP, convolution, ...), alpha_i and beta_i learnable gates, z the
trunk (B, *S, D), which stays in float32 whatever the branch computes in. A residual structure is
one row of `VARIANTS`: which gates it has, and how they join z and F.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from nrdm_jax.models.conditioning import Condition
from nrdm_jax.signatures import Array


@dataclasses.dataclass(frozen=True)
class Gates:
    """How the gates of a stack of `units` units are parameterised.

    Attributes:
      units: residual units in the whole stack; bounds and start values depend on it.
      shape: `channel`, a value per channel of the trunk, or `scalar`.
      condition: `static`, one value for all inputs; `cond`, g(c) = g + W SiLU(c), W of the unit's
      own
        and zero at start; `cond_shared`, the same with one W for the whole stack.
      alpha, beta: whether the gate exists at all.
      alpha_start: `auto` (zero where conditional, so that the stack starts as the identity, else
        inv_sqrt_units), `zero`, `one`, `inv_sqrt_units` = 1/sqrt(units), or a number.
      alpha_offset, alpha_scale: alpha = offset + scale * parameter.
      beta_bound: beta = beta_raw / units. A beta shared by all tokens writes into the token mean
      only,
        and those of all units add up: unbounded, it is the direction in which very deep
        transformers collapse (arXiv 2605.06169). The optimizer moves beta_raw ten times slower as
        well.
    """

    units: int
    shape: str = "channel"
    condition: str = "cond"
    alpha: bool = True
    beta: bool = True
    alpha_start: str | float = "auto"
    alpha_offset: float = 0.0
    alpha_scale: float = 1.0
    beta_bound: bool = True

    def alpha_value(self) -> float:
        """The start value as a number.

        Raises:
          ValueError: `alpha_start` is neither a known name nor a number.
        """
        named = {"zero": 0.0, "one": 1.0, "inv_sqrt_units": self.units**-0.5}
        named["auto"] = named["inv_sqrt_units" if self.condition == "static" else "zero"]
        if self.alpha_start in named:
            return named[self.alpha_start]
        try:
            return float(self.alpha_start)
        except ValueError:
            raise ValueError(
                f"alpha_start is {self.alpha_start!r}; choose one of {', '.join(named)} or a number"
            ) from None


class Variant(NamedTuple):
    """One residual structure.

    Attributes:
      residual: (z, F, alpha, beta) -> the next z, F a function of z; a gate that is absent is None.
      gates: the gates this structure has, given those that were asked for.
    """

    residual: Callable[..., Array]
    gates: Callable[[Gates], Gates]


def gated(z: Array, branch: Callable[[Array], Array], alpha: Array, beta: Array | None) -> Array:
    """z + alpha * F(z) + beta (arXiv 2406.13215); with beta off and alpha(c) zero: adaLN-Zero."""
    z = z + alpha * branch(z)
    return z if beta is None else z + beta


def resnet(z: Array, branch: Callable[[Array], Array], alpha: None, beta: None) -> Array:
    """z + F(z) (He et al., arXiv 1512.03385)."""
    return z + branch(z)


def adaln(z: Array, branch: Callable[[Array], Array], alpha: Array, beta: Array | None) -> Array:
    """z + F(alpha * z + beta): the gates before the branch, and not behind it."""
    inside = alpha * z
    return z + branch(inside if beta is None else inside + beta)


def input_scale(
    z: Array, branch: Callable[[Array], Array], alpha: Array, beta: Array | None
) -> Array:
    """alpha * z + F(z) + beta: the gate on the trunk itself."""
    out = alpha * z + branch(z)
    return out if beta is None else out + beta


def _adaln_gates(gates: Gates) -> Gates:
    start = "one" if gates.alpha_start == "auto" else gates.alpha_start
    return dataclasses.replace(gates, alpha_start=start)


# The first five are those the paper compares.
VARIANTS = {
    "gated": Variant(gated, lambda gates: gates),
    "adaln": Variant(adaln, _adaln_gates),
    # alpha = 1 + a / units with a = 0 at start: its product over the stack stays within e^max(a).
    "input_scale": Variant(
        input_scale,
        lambda gates: dataclasses.replace(
            gates, alpha_start="zero", alpha_offset=1.0, alpha_scale=1.0 / gates.units
        ),
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
}


class Gate(nn.Module):
    """One gate: () -> an array that broadcasts against the trunk.

    Attributes:
      shape, condition: as in `Gates`.
      start: value for every input, at start, without the offset.
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
            projected = condition.shared[str(self.name)][..., :features]
        gate = self.offset + self.scale * (projected + bias[None, :])
        return gate.reshape(gate.shape[0], *(1,) * (z.ndim - 2), features)


class ResidualUnit(nn.Module):
    """(z (B, *S, D), condition) -> z of the same shape, through one branch and its gates.

    Attributes:
      branch: (z, condition) -> (B, *S, D) in any float type.
      gates: the gates of the stack; the variant may remove some.
      variant: a key of `VARIANTS`.
    """

    branch: nn.Module
    gates: Gates
    variant: str = "gated"

    @nn.compact
    def __call__(self, z: Array, condition: Condition) -> Array:
        variant = VARIANTS[self.variant]
        gates = variant.gates(self.gates)
        alpha = beta = None
        if gates.alpha:
            alpha = Gate(
                gates.shape,
                gates.condition,
                gates.alpha_value(),
                gates.alpha_scale,
                gates.alpha_offset,
                name="alpha",
            )(z, condition)
        if gates.beta:
            scale = 1.0 / gates.units if gates.beta_bound else 1.0
            beta = Gate(gates.shape, gates.condition, 0.0, scale, name="beta")(z, condition)

        def branch(z):
            return self.branch(z, condition).astype(jnp.float32)

        return variant.residual(z, branch, alpha, beta)
