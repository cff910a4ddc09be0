"""The two gradients of a network of continuous depth, against each other and the tolerance.

  python -m benchmarks.continuous_depth

A gated block integrated over 12 blocks of depth (width 64, 16 tokens, float32, alpha 0.3 at start,
other zero-initialised leaves from N(0, 0.02^2)), weights of one block (tied) and of four knots with
lines between, solved by tsit5. For each tolerance: `disagreement`, |g_ode - g_bp| / |g|, of the
adjoint equation's gradient from that of back-propagation through the solver; and `error`,
|g_bp - g| / |g|, of the latter from g, back-propagation at the smallest tolerance of all: what the
solver's own steps cost. Exits 1 unless both fall from the first tolerance to the last.
"""

from absl import flags

from benchmarks import measuring
from benchmarks.gradient_agreement import difference, gradient
from nrdm_jax.processes import lifecycle

FINEST = 1e-7


def define_flags() -> None:
    flags.DEFINE_list("tolerances", ["1e-1", "1e-2", "1e-3", "1e-4", "1e-5", "1e-6"], "falling")
    flags.DEFINE_integer("depth", 12, "length of the integral, in blocks", lower_bound=1)


def run() -> int:
    import numpy as np

    tolerances = [float(text) for text in flags.FLAGS.tolerances]
    result: dict = {"tolerances": tolerances}
    for name, knots in (("tied", 1), ("interpolated", 4)):

        def of(tolerance: float, adjoint: str, knots: int = knots):
            return gradient(
                flags.FLAGS.depth, name="continuous", knots=knots, alpha_start="0.3",
                tolerance=tolerance, adjoint=adjoint,
            )  # fmt: skip

        exact = of(FINEST, "backpropagation")
        result[name] = {"disagreement": [], "error": []}
        for tolerance in tolerances:
            plain, ode = of(tolerance, "backpropagation"), of(tolerance, "ode")
            found = {
                "disagreement": float(np.linalg.norm(ode - plain) / np.linalg.norm(exact)),
                "error": difference(plain, exact),
            }
            print(f"{name}, tolerance {tolerance:g}: " + ", ".join(
                f"{key} {value:.2e}" for key, value in found.items()), flush=True)  # fmt: skip
            for key, value in found.items():
                result[name][key].append(float(f"{value:.2e}"))
    measuring.print_result(result)
    falls = [row[-1] < row[0] for name in ("tied", "interpolated") for row in result[name].values()]
    return 0 if all(falls) else 1


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
