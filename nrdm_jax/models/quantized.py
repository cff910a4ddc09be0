"""Products of activations with weights in 8 bits, by qwix: both operands, and in the backward pass
the gradient, are scaled by their largest value a channel and rounded; sums are of 32 bits, results
of the operands' type. Weights stay what they are."""

import importlib.util
from collections.abc import Callable
from typing import Any

import jax

from nrdm_jax.signatures import Array

# Operands; the gradient. 5 bits of exponent for what is widely spread (arXiv 2209.05433).
TYPES = {"int8": ("int8", "int8"), "fp8": ("float8_e4m3fn", "float8_e5m2")}


def check(kind: str) -> None:
    """Raises:
    ValueError: qwix is needed and not installed.
    """
    if kind != "none" and importlib.util.find_spec("qwix") is None:
        raise ValueError(
            f"model.quantize is {kind}, which needs qwix; "
            "bash launch/local.sh --setup-only --extras=quantize, or choose none"
        )


def dot_general(kind: str) -> Callable[..., Array]:
    """`jax.lax.dot_general`, or what takes its place: none, or a key of `TYPES`."""
    if kind == "none":
        return jax.lax.dot_general
    # Its public `QtProvider.dot_general` is this and a search, by shape, for which of a module's
    # weights an operand is: it fails on query, key and value, of one shape.
    from qwix._src.core.dot_general_qt import DotGeneralQtConfig, dot_general_qt

    operands, gradient = TYPES[kind]
    types = DotGeneralQtConfig(
        lhs_qtype=operands,
        rhs_qtype=operands,
        dlhs_grad_qtype=gradient,
        drhs_grad_qtype=gradient,
    )

    def rounded(lhs: Array, rhs: Array, dimension_numbers: Any, *_: Any, **__: Any) -> Array:
        return dot_general_qt(lhs, rhs, dimension_numbers, types)

    return rounded
