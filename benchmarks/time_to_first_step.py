"""Seconds from the command to the first trained step: with an empty compile cache, and with a full
one.

  python -m benchmarks.time_to_first_step

Starts the main job's train entry for one step, in pairs: each pair empties the cache, starts cold,
then warm. Prints medians, and the ratio warm / cold.
"""

import pathlib
import statistics
import tempfile
import time

from absl import flags

from benchmarks import measuring
from nrdm_jax.processes import lifecycle


def define_flags() -> None:
    flags.DEFINE_string("config", "configs/openmoji32.py", "of the run")
    flags.DEFINE_integer("pairs", 3, "cold and warm starts", lower_bound=1)


def seconds_to_first_step(cache: pathlib.Path, workdir: pathlib.Path) -> float:
    before = time.perf_counter()
    seconds = None
    for line in measuring.train_lines(
        workdir,
        "--config.log.every=1",
        "--config.train.steps=1",
        JAX_COMPILATION_CACHE_DIR=str(cache),
    ):
        if line.startswith("step=1/"):
            seconds = time.perf_counter() - before
    if seconds is None:
        raise RuntimeError("the run printed no step line")
    return seconds


def run() -> None:
    cold, warm = [], []
    for pair in range(flags.FLAGS.pairs):
        with tempfile.TemporaryDirectory() as directory:
            cache, home = pathlib.Path(directory) / "cache", pathlib.Path(directory)
            cold.append(seconds_to_first_step(cache, home / "cold"))
            warm.append(seconds_to_first_step(cache, home / "warm"))
        print(f"pair {pair}: cold {cold[-1]:.1f} s, warm {warm[-1]:.1f} s", flush=True)
    result = {
        "cold_seconds": round(statistics.median(cold), 2),
        "warm_seconds": round(statistics.median(warm), 2),
        "ratio": round(statistics.median(w / c for w, c in zip(warm, cold, strict=True)), 3),
    }
    measuring.print_result(result)


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
