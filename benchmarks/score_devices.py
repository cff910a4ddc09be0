"""The scores of one checkpoint on one device, on eight, and on two processes of four devices each,
for the same seeds: largest difference of the Fréchet distance over its value.

  python -m benchmarks.score_devices
"""

import json
import pathlib
import sys
import tempfile

from absl import flags

from benchmarks import jobs, measuring
from nrdm_jax.processes import lifecycle

BAR = 1e-4
LONG = 1800.0  # seconds that no layout takes
# name -> (processes, devices of each).
LAYOUTS = {"2x4": (2, 4), "8": (1, 8), "1": (1, 1)}


def define_flags() -> None:
    flags.DEFINE_string("config", "configs/openmoji32.py:smoke", "of the run that is scored")
    flags.DEFINE_integer("samples", 192, "that are scored", lower_bound=2)
    flags.DEFINE_integer(
        "reference", 512, "training examples they are compared with", lower_bound=2
    )
    flags.DEFINE_string("net", "efflite0", "whose features are compared")


def scored(workdir: pathlib.Path, processes: int, devices: int) -> dict:
    """The RESULT of `evaluate`, by its first process.

    Raises:
      RuntimeError: a process failed.
    """
    f = flags.FLAGS
    command = [sys.executable, "-m", "nrdm_jax.evaluate", f"--workdir={workdir}",
               f"--samples={f.samples}", "--metrics=fd,kid", f"--net={f.net}"]  # fmt: skip
    commands = [[*command, *each] for each in jobs.meeting(processes)]
    logs = [workdir.parent / f"{processes}x{devices}.{i}.log" for i in range(processes)]
    jobs.finish(jobs.start(commands, logs, jobs.variables(devices)), logs, LONG)
    lines = logs[0].read_text().splitlines()
    return json.loads(next(x for x in reversed(lines) if x.startswith("RESULT "))[7:])


def run() -> int:
    f = flags.FLAGS
    name = f"fd_{f.net}"
    with tempfile.TemporaryDirectory() as directory:
        workdir = pathlib.Path(directory) / "run"
        measuring.train(workdir, f"--config.evaluate.reference={f.reference}")
        found = {}
        references = lifecycle.cache_dir() / "references"
        for layout, (processes, devices) in LAYOUTS.items():
            known = set(references.glob("*.npz"))
            found[layout] = scored(workdir, processes, devices)[name]
            for made in set(references.glob("*.npz")) - known:
                made.unlink()  # each layout makes its own
            print(f"{layout}: {name} {found[layout]:.6f}", flush=True)
    worst = max(abs(value / found["1"] - 1) for value in found.values())
    measuring.print_result({"difference": float(f"{worst:.2e}"), name: found})
    return 0 if worst <= BAR else 1


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
