"""Floating-point operations of a function, counted from its program and not from a compiler's
guess: XLA counts the body of a scan once."""

import math
from collections.abc import Callable

import jax

# One forward pass, and a backward pass of two products for each of its own; recomputation under
# rematerialisation is not counted (PaLM, arXiv 2204.02311, appendix B).
FORWARD_AND_BACKWARD = 3

# Peak dense bfloat16 TFLOP/s of one device, by `device_kind`, from the makers' data sheets.
PEAK_TFLOPS = {
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA H200": 989.0,
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5": 459.0,
    "TPU v5p": 459.0,
    "TPU v6 lite": 918.0,
}


def count(f: Callable, *arguments) -> int:
    """FLOPs of the matrix products and convolutions of `f(*arguments)`, a multiply-add being two; 0
    where some are in a loop whose length the program does not say.

    Args:
      f: any traceable function.
      arguments: arrays or ShapeDtypeStructs.
    """
    try:
        return _of_jaxpr(jax.make_jaxpr(f)(*arguments).jaxpr)
    except _UnknownLengthError:
        return 0


class _UnknownLengthError(Exception):
    pass


def _of_jaxpr(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            left = equation.invars[0].aval.shape
            depth = math.prod(left[axis] for axis in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * depth
        elif name == "conv_general_dilated":
            out = parameters["dimension_numbers"].rhs_spec[0]
            kernel = equation.invars[1].aval.shape
            taps = math.prod(kernel) // kernel[out]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * taps
        parts = [_of_jaxpr(sub) for sub in _inner(parameters)]
        # Of the branches of a condition, such as a platform's own form, one is taken.
        inner = max(parts, default=0) if name == "cond" else sum(parts)
        if name == "while" and inner:
            raise _UnknownLengthError
        total += inner * (parameters["length"] if name == "scan" else 1)
    return total


def _inner(parameters) -> list:
    found = []
    for value in parameters.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "eqns"):
                found.append(item)
            elif hasattr(item, "jaxpr"):
                found.append(item.jaxpr)
    return found
