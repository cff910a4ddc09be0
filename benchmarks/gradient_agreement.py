"""Whether the memory modes compute the gradient that they should.

  python -m benchmarks.gradient_agreement

The largest relative difference |g - g_none| / |g_none| of the whole gradient from the same network
under mode none: 64 blocks of width 64, 16 tokens, float32, the worst over the variants for which
the mode is defined. Zero-initialised leaves are drawn from N(0, 0.02^2) first. reversible_1000 is
1,000 blocks, reversible_bf16 64 blocks with bfloat16 branches (whose own rounding, against
float32 branches under mode none, is bf16). Exits 1 if remat or sqrt is above 1e-6 or reversible
above 1e-4.
"""

from absl import flags

from benchmarks import measuring
from benchmarks.deep_config import deep_config
from nrdm_jax.config import ADDITIVE_VARIANTS, CHOICES
from nrdm_jax.processes import lifecycle

BARS = {"remat": 1e-6, "sqrt": 1e-6, "reversible": 1e-4}


def define_flags() -> None:
    flags.DEFINE_integer("depth", 64, "blocks", lower_bound=1)
    flags.DEFINE_integer("deep", 1000, "blocks of reversible_1000", lower_bound=1)


def gradient(depth: int, **model):
    """One vector, float64, on the host."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from nrdm_jax import networks, trees

    c = deep_config(depth, width=64, heads=2, patch=(4,), **model)
    init, apply = networks.model(c)
    params = trees.drawn_zeros(jax.jit(init)(jax.random.key(0)), jax.random.key(1))
    x, t, given = networks.example(c, 8)
    x = jax.random.normal(jax.random.key(2), x.shape)
    t, given = jnp.linspace(0.05, 0.95, *t.shape), {"label": jnp.arange(8) % 10}

    def loss(params):
        return jnp.mean((apply(params, x, t, given) - x) ** 2)

    leaves = jax.tree.leaves(jax.device_get(jax.jit(jax.grad(loss))(params)))
    return np.concatenate([np.ravel(leaf) for leaf in leaves]).astype(np.float64)


def difference(a, b) -> float:
    """Raises:
    RuntimeError: a number is not finite: nothing can be said to agree with it.
    """
    import numpy as np

    found = float(np.linalg.norm(a - b) / np.linalg.norm(b))
    if not np.isfinite(found):
        raise RuntimeError("a gradient is not finite")
    return found


def run() -> int:
    f = flags.FLAGS
    worst = dict.fromkeys(BARS, 0.0)
    for variant in CHOICES["model.variant"]:
        for streams in (1, 2):
            plain = gradient(f.depth, variant=variant, streams=streams)
            for mode in BARS:
                if mode == "reversible" and (streams == 1 or variant not in ADDITIVE_VARIANTS):
                    continue
                other = gradient(f.depth, variant=variant, streams=streams, memory=mode)
                found = difference(other, plain)
                worst[mode] = max(worst[mode], found)
                print(f"{variant}, {streams} streams, {mode}: {found:.2e}", flush=True)
    reversible = {"streams": 2, "memory": "reversible"}
    deep = difference(gradient(f.deep, **reversible), gradient(f.deep, streams=2))
    half, whole = ({"streams": 2, "branch_dtype": t} for t in ("bfloat16", "float32"))
    plain_half = gradient(f.depth, **half)
    result = {name: float(f"{value:.2e}") for name, value in worst.items()} | {
        "blocks": f.depth,
        "units": 2 * f.depth,
        "reversible_1000": float(f"{deep:.2e}"),
        "reversible_bf16": float(
            f"{difference(gradient(f.depth, memory='reversible', **half), plain_half):.2e}"
        ),
        "bf16": float(f"{difference(plain_half, gradient(f.depth, **whole)):.2e}"),
    }
    measuring.print_result(result)
    return 0 if all(result[mode] <= bar for mode, bar in BARS.items()) else 1


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
