"""Do stacks of up to 1,000 blocks train?

  python -m benchmarks.depth_stability --quick

trains 1,000 gated blocks (configs/depth_1000.py) for 300 steps on real pictures. depth_gain is the
held-out loss of the EMA weights with every alpha set to 0, over the loss as it is: what the depth
itself does. Exits 1 if a step was skipped, the loss did not fall, depth_gain is below 1.1, or it
took more than 30 minutes.

  python -m benchmarks.depth_stability --study

does what is missing of the depth study, for hours; it can be stopped at any time and goes on. Start
it once for every core, each under `taskset -c N`: no two take the same run, and two runs on a core
each are done sooner than one after the other on both. Each run that ends writes
docs/depth/runs/NAME.json, and

  python -m benchmarks.depth_stability --report

makes the table and the figures of docs/depth from them.
"""

import pathlib
import shutil
import subprocess
import time

from absl import flags

from benchmarks import depth_report, depth_runs, measuring
from nrdm_jax.processes import lifecycle

QUICK_STEPS = 300
MOST_SECONDS = 30 * 60


def define_flags() -> None:
    flags.DEFINE_bool("quick", False, "1,000 gated blocks, 300 steps")
    flags.DEFINE_bool("study", False, "all runs that are missing")
    flags.DEFINE_bool("report", False, "table and figures of the runs that there are")
    flags.DEFINE_integer("depth", 1000, "blocks of --quick", lower_bound=1)
    flags.DEFINE_string("workdir", "runs/depth_stability", "of --quick; removed at its end")


def quick(depth: int, workdir: pathlib.Path) -> int:
    run = depth_runs.Run("gated", depth, "one", steps=QUICK_STEPS)
    command = [
        f"--workdir={workdir}" if part.startswith("--workdir") else part for part in run.command()
    ]
    shutil.rmtree(workdir, ignore_errors=True)
    before = time.monotonic()
    code = subprocess.run(
        [*command, "--config.evaluate.every=300", "--config.checkpoint.every=300"], check=False
    ).returncode
    if code not in (0, depth_runs.NON_FINITE):
        raise RuntimeError(f"the run ended with exit code {code}")
    # The guard ends a run at the first step that it would have to skip.
    result: dict = {
        "blocks": depth,
        "units": 2 * depth,
        "steps": QUICK_STEPS,
        "seconds": round(time.monotonic() - before),
        "skipped": int(code != 0),
    }
    if code == 0:
        heldout = depth_runs.record(run, workdir, finished=True)["heldout_loss"]
        result["heldout_loss_first"], result["heldout_loss_last"] = heldout[0][1], heldout[-1][1]
        result["depth_gain"] = round(depth_gain(workdir), 3)
    shutil.rmtree(workdir)
    measuring.print_result(result)
    fine = (
        not result["skipped"]
        and result["seconds"] <= MOST_SECONDS
        and result["heldout_loss_last"] < result["heldout_loss_first"]
        and result["depth_gain"] >= 1.1
    )
    return 0 if fine else 1


def depth_gain(workdir: pathlib.Path) -> float:
    """Held-out loss with every alpha at 0 over the held-out loss, of the EMA weights."""
    import jax.numpy as jnp

    from nrdm_jax import build, config, measures, run_weights, trees
    from nrdm_jax.evaluation.heldout import heldout_losses
    from nrdm_jax.processes.stored_config import read_config

    c = config.from_dict(read_config(workdir))
    parts = build.run(c)
    ema = run_weights.find(str(workdir)).read(parts.abstract_state.ema)
    heldout = build.source(c, "heldout", str(lifecycle.data_dir()))
    batches = measures.heldout_batches(c, heldout, parts.mesh, c.evaluate.examples)
    sums = measures.level_sums(c, parts.apply, parts.path, parts.mesh)
    without = trees.map_with_path(
        lambda path, x: jnp.zeros_like(x) if "/alpha/" in f"/{path}" else x, ema
    )
    levels = c.evaluate.log_snr
    whole, flat = (
        heldout_losses(sums, weights, batches, levels)["heldout_loss"] for weights in (ema, without)
    )
    return flat / whole


def study() -> int:
    runs = depth_runs.study()
    for run in runs:
        with depth_runs.claim(run) as mine:
            if mine and not run.result.exists():
                print(f"{run.name}: starts", flush=True)
                result = depth_runs.do(run)
                last, jump = result["heldout_loss"][-1], result["jumped_at"]
                print(f"{run.name}: {last}, jumped {jump}", flush=True)
    done = sum(run.result.exists() for run in runs)
    measuring.print_result({"done": done, "of": len(runs)})
    return 0


def run() -> int:
    f = flags.FLAGS
    if f.quick + f.study + f.report != 1:
        raise ValueError("give one of --quick, --study, --report")
    if f.quick:
        return quick(f.depth, pathlib.Path(f.workdir))
    if f.study:
        return study()
    return depth_report.write()


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
