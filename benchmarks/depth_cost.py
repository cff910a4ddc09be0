"""What depth costs besides arithmetic: compile time, program size, activation memory.

  python -m benchmarks.depth_cost

DiT-S/2 width, 64 tokens, batch 8, two streams. compile_ratio and program_ratio: the whole train
step of 1,000 blocks against 12: median seconds to compile, in alternated pairs without a cache, and
instructions in the optimised HLO. activation_ratio: the compiler's temporary bytes of
value_and_grad (the gradients are outputs and not among them), 1,000 blocks against 10, for each
memory mode. Nothing of it is run. Exits 1 if compile_ratio is above 1.15, program_ratio above 1.02,
reversible above 1.1 or sqrt above 12.
"""

import statistics
import time

from absl import flags

from benchmarks import measuring
from benchmarks.deep_config import deep_config
from nrdm_jax.processes import lifecycle

MODES = ("none", "remat", "sqrt", "reversible")


def define_flags() -> None:
    flags.DEFINE_integer("pairs", 5, "compilations of each depth", lower_bound=1)
    flags.DEFINE_integer("depth", 1000, "blocks", lower_bound=10)


def compiled_step(depth: int) -> tuple[float, int]:
    """Seconds to compile the train step, and its instructions."""
    import numpy as np

    from nrdm_jax import build, programs

    parts = build.run(deep_config(depth, streams=2))
    before = time.perf_counter()
    compiled = programs.compiled_step(parts, np.dtype("float32"))
    seconds = time.perf_counter() - before
    return seconds, sum(" = " in line for line in compiled.as_text().splitlines())


def temporary_bytes(depth: int, mode: str) -> int:
    """Of value_and_grad of a mean over the network's output."""
    import jax
    import jax.numpy as jnp

    from nrdm_jax import networks

    c = deep_config(depth, streams=2, memory=mode)
    init, apply = networks.model(c)
    params = jax.eval_shape(init, jax.random.key(0))
    f = jax.jit(jax.value_and_grad(lambda *arguments: jnp.mean(apply(*arguments) ** 2)))
    compiled = f.lower(params, *networks.example(c, c.train.batch_size)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def run() -> int:
    import jax

    jax.config.update("jax_enable_compilation_cache", False)
    f = flags.FLAGS
    seconds: dict[int, list[float]] = {12: [], f.depth: []}
    instructions = {}
    compiled_step(12)  # what is slow the first time in a process
    for pair in range(f.pairs):
        for depth in (12, f.depth) if pair % 2 == 0 else (f.depth, 12):
            time_spent, instructions[depth] = compiled_step(depth)
            seconds[depth].append(time_spent)
        print(f"pair {pair}: " + " ".join(f"{d}: {s[-1]:.2f} s" for d, s in seconds.items()))
    ratios = [b / a for a, b in zip(seconds[12], seconds[f.depth], strict=True)]
    activation = {}
    for mode in MODES:
        few, many = temporary_bytes(10, mode), temporary_bytes(f.depth, mode)
        activation[mode] = round(many / few, 3)
        print(f"{mode}: {few / 2**20:.1f} MiB at 10 blocks, {many / 2**20:.1f} at {f.depth}")
    result = {
        "blocks": f.depth,
        "units": 2 * f.depth,
        "compile_ratio": round(statistics.median(ratios), 3),
        "compile_ratio_spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "compile_seconds": round(statistics.median(seconds[f.depth]), 2),
        "program_ratio": round(instructions[f.depth] / instructions[12], 4),
        "instructions": instructions[f.depth],
        "activation_ratio": activation,
    }
    measuring.print_result(result)
    fine = (
        result["compile_ratio"] <= 1.15
        and result["program_ratio"] <= 1.02
        and activation["reversible"] <= 1.1
        and activation["sqrt"] <= 12
    )
    return 0 if fine else 1


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
