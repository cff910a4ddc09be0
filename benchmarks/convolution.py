"""A convolution's derivative in a scan on a CPU: our form against XLA's own, in pairs.

  python -m benchmarks.convolution

A scan over 4 gated convolutions of 32 channels on 32 x 32, batch 8, and its gradient. Prints
seconds and the median ratio. Exits 1 where ours is not the faster one.
"""

import statistics

from absl import flags

from benchmarks import measuring
from nrdm_jax.processes import lifecycle


def define_flags() -> None:
    flags.DEFINE_integer("pairs", 5, "of timed calls", lower_bound=1)


def gradient_of_a_stack(convolve):
    """A function that computes it and waits for it."""
    import jax
    import jax.numpy as jnp

    def loss(u, kernels):
        def unit(z, kernel):
            return z + convolve(jnp.pad(z, ((0, 0), (1, 1), (1, 1), (0, 0))), kernel), None

        return jnp.mean(jax.lax.scan(unit, u, kernels)[0] ** 2)

    u = jax.random.normal(jax.random.key(0), (8, 32, 32, 32))
    kernels = jax.random.normal(jax.random.key(1), (4, 3, 3, 32, 32)) * 0.05
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    return lambda: jax.block_until_ready(gradient(u, kernels))


def run() -> int:
    from nrdm_jax.models.convolution import native, sum_of_products

    ours, xla = gradient_of_a_stack(sum_of_products), gradient_of_a_stack(native)
    both = measuring.paired_seconds(ours, xla, flags.FLAGS.pairs)
    ratio = statistics.median(b / a for a, b in both)
    print(f"ours {statistics.median(a for a, _ in both):.3f} s, "
          f"XLA's {statistics.median(b for _, b in both):.3f} s")  # fmt: skip
    measuring.print_result({"speedup": ratio, "pairs": len(both)})
    return 0 if ratio > 1 else 1


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
