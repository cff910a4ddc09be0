"""What gates and the sensitivity profile cost in time.

  python -m benchmarks.unit_overhead

The whole train step of DiT-S/2 (12 blocks of width 384, 256 tokens, batch 8), in alternated pairs:
`gates` is the median step time of gated units over that of resnet units, the stack being the same
otherwise; `profile` that with the sensitivity of every unit measured over that without. Each with
the 95 % interval of the median (order statistics). Exits 1 if gates is above 1.05 (1.02 is wanted)
or profile above 1.03.
"""

import statistics

from absl import flags

from benchmarks import measuring
from nrdm_jax import config as configuration
from nrdm_jax.processes import lifecycle


def define_flags() -> None:
    flags.DEFINE_integer("pairs", 30, "alternated pairs", lower_bound=10)
    flags.DEFINE_integer("batch_size", 8, "images a step", lower_bound=1)


def stepper(batch_size: int, variant: str, probe: bool):
    """A function that does one step and waits for it."""
    import jax
    import numpy as np

    from nrdm_jax import build, programs

    c = configuration.default()
    c.data.name, c.data.shape, c.data.num_classes = "synthetic", (32, 32, 4), 10
    c.model.size, c.model.variant, c.model.patch = "S", variant, (2,)
    c.log.sensitivity_every = int(probe)
    c.train.batch_size = c.evaluate.batch_size = batch_size
    configuration.validate(c)
    parts = build.run(c)
    state = parts.fresh_state()
    step = programs.compiled_step(parts, np.dtype("float32"))
    batch = measuring.placed_batch(parts)

    def run() -> None:
        nonlocal state
        state, _ = step(state, batch)
        jax.block_until_ready(state)

    return run


def ratios(one, other, pairs: int) -> list[float]:
    """Seconds of `one` over those of `other`."""
    return [a / b for a, b in measuring.paired_seconds(one, other, pairs)]


def median_and_interval(values: list[float]) -> tuple[float, list[float]]:
    """The median and its 95 % interval: the order statistics l and n + 1 - l, l the largest with
    P(Binomial(n, 1/2) < l) <= 0.025."""
    from scipy.stats import binom

    values, n = sorted(values), len(values)
    low = int(binom.ppf(0.025, n, 0.5))
    interval = [values[max(0, low - 1)], values[min(n - 1, n - low)]]
    return round(statistics.median(values), 4), [round(v, 4) for v in interval]


def run() -> int:
    f = flags.FLAGS
    gated = stepper(f.batch_size, "gated", probe=False)
    profiled = stepper(f.batch_size, "gated", probe=True)
    resnet = stepper(f.batch_size, "resnet", probe=False)
    gates, gates_interval = median_and_interval(ratios(gated, resnet, f.pairs))
    profile, profile_interval = median_and_interval(ratios(profiled, gated, f.pairs))
    measuring.print_result(
        {
            "gates": gates,
            "gates_interval": gates_interval,
            "profile": profile,
            "profile_interval": profile_interval,
            "pairs": f.pairs,
        }
    )
    return 0 if gates <= 1.05 and profile <= 1.03 else 1


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
