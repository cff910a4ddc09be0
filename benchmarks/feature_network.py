"""The default feature network: depthwise convolutions as shifted products against XLA's grouped
ones, in pairs.

  python -m benchmarks.feature_network

The whole of EfficientNet-Lite0 on a batch of pictures of 32 x 32, which it enlarges. Prints
pictures a second and the median ratio. Exits 1 on a CPU where ours is not the faster one.
"""

import statistics
from unittest import mock

from absl import flags

from benchmarks import measuring
from nrdm_jax.processes import lifecycle


def define_flags() -> None:
    flags.DEFINE_integer("pairs", 3, "of timed calls", lower_bound=1)
    flags.DEFINE_integer("batch", 32, "pictures a call", lower_bound=1)


def grouped(x_BHWC, kernel, stride):
    """XLA's own depthwise convolution, "SAME"."""
    import jax

    return jax.lax.conv_general_dilated(
        x_BHWC,
        kernel[:, :, None, :],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x_BHWC.shape[-1],
    )


def run() -> int:
    import jax
    import numpy as np

    from nrdm_jax.evaluation import features
    from nrdm_jax.evaluation.networks import efflite0

    net, batch = features.open_net("efflite0"), flags.FLAGS.batch
    pixels = np.random.default_rng(0).uniform(0, 255, (batch, 32, 32, 3)).astype(np.float32)

    def compiled(convolve):
        with mock.patch.object(efflite0, "convolve_depthwise", convolve):
            # A function of its own: traces are remembered by function.
            traced = jax.jit(lambda params, x: net.apply(params, x)).lower(net.params, pixels)
        program = traced.compile()
        return lambda: jax.block_until_ready(program(net.params, pixels))

    ours, xla = compiled(efflite0.convolve_depthwise), compiled(grouped)
    apart = max(float(np.abs(a - b).max()) for a, b in zip(ours(), xla(), strict=True))
    both = measuring.paired_seconds(ours, xla, flags.FLAGS.pairs)
    ratio = statistics.median(b / a for a, b in both)
    rates = [batch / statistics.median(seconds) for seconds in zip(*both, strict=True)]
    print(f"ours {rates[0]:.1f}, XLA's {rates[1]:.1f} pictures/s; outputs {apart:.1e} apart")
    measuring.print_result({"speedup": ratio, "pictures_per_second": rates[0], "pairs": len(both)})
    return 0 if (ratio > 1 or jax.default_backend() != "cpu") and apart < 1e-2 else 1


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
