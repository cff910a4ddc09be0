"""Whether a run that was killed is the run that was not: bit for bit.

  python -m benchmarks.resume --config=configs/openmoji32.py:smoke

Trains 20 steps in one go, and again with the process killed (SIGKILL) after step 7 was saved, then
resumed. Prints the sha256 over every leaf of both states (step, key, weights, EMA, power-function
averages, optimizer) and of the snapshots of the averages; exits 1 unless they are equal, and the
second process went on from where the first was.
"""

import hashlib
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import time

from absl import flags

from benchmarks import measuring
from nrdm_jax.processes import lifecycle

STEPS, KILLED_AFTER = 20, 7


def define_flags() -> None:
    flags.DEFINE_string("config", "configs/openmoji32.py:smoke", "of the run")


def command(workdir: pathlib.Path) -> list[str]:
    return measuring.train_command(
        workdir,
        f"--config.train.steps={STEPS}",
        f"--config.checkpoint.every={KILLED_AFTER}",
        "--config.train.ema_widths=(0.1, 0.25)",
        f"--config.train.ema_snapshots={STEPS // 2}",
    )


def train(workdir: pathlib.Path) -> str:
    """What it says."""
    return subprocess.run(command(workdir), check=True, stdout=subprocess.PIPE, text=True).stdout


def restored(said: str) -> int:
    """The step that a run says it began with; 0: none."""
    found = re.search(r"^restored step (\d+),", said, re.MULTILINE)
    return int(found[1]) if found else 0


def train_and_kill(workdir: pathlib.Path) -> None:
    """Kills the process as soon as step 7 is committed; it may be some steps further by then."""
    process = subprocess.Popen(command(workdir), stdout=subprocess.DEVNULL)
    committed = workdir / "checkpoints" / str(KILLED_AFTER)
    while not committed.exists() and process.poll() is None:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    code = process.wait()
    print(f"killed after step {KILLED_AFTER} was saved: exit code {code}", flush=True)
    if code != -signal.SIGKILL:
        raise RuntimeError(f"the run ended with {code} before it could be killed")


def digest(workdir: pathlib.Path, step: int | None = None) -> tuple[str, int]:
    """sha256 over path, type and bytes of every leaf of a checkpoint, the newest unless it is said,
    whose step is given too, and of all snapshots."""
    import jax
    import numpy as np

    from nrdm_jax import build, config, run_weights, trees
    from nrdm_jax.checkpointing.stored import StoredCheckpoints
    from nrdm_jax.processes.stored_config import read_config
    from nrdm_jax.training.hooks import save_items

    parts = build.run(config.from_dict(read_config(workdir)))
    if step is None:
        step = run_weights.steps_of(str(workdir), run_weights.CHECKPOINTS)[-1]
    snapshots = run_weights.steps_of(str(workdir), run_weights.SNAPSHOTS)
    items = save_items(parts.abstract_state)
    total = hashlib.sha256()
    for kind, at, wanted in [
        (run_weights.CHECKPOINTS, step, items),
        *((run_weights.SNAPSHOTS, at, {"averages": items["averages"]}) for at in snapshots),
    ]:
        checkpoints = StoredCheckpoints(str(workdir / kind))
        for path, leaf in trees.leaves_with_path(jax.device_get(checkpoints.restore(at, wanted))):
            total.update(f"{kind} {at} {path} {leaf.dtype} {leaf.shape}".encode())
            total.update(np.ascontiguousarray(leaf).tobytes())
        checkpoints.close()
    return total.hexdigest(), step


def run() -> int:
    with tempfile.TemporaryDirectory() as directory:
        whole, killed = pathlib.Path(directory) / "whole", pathlib.Path(directory) / "killed"
        train(whole)
        train_and_kill(killed)
        begun = restored(train(killed))
        one, other = digest(whole), digest(killed)
    result = {"bitwise": one == other, "steps": [one[1], other[1]], "restored": begun,
              "sha256": [one[0], other[0]]}  # fmt: skip
    measuring.print_result(result)
    return 0 if one == other and one[1] == STEPS and begun >= KILLED_AFTER else 1


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
