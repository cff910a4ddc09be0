"""The scores of one checkpoint on one device, on eight, and on two processes of four devices each,
for the same seeds: largest difference of the Fréchet distance over its value.

  python -m benchmarks.score_devices
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

from absl import flags

from benchmarks import measuring
from nrdm_jax.processes import lifecycle

BAR = 1e-4
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
    # Devices that share two cores may come late to a collective.
    late = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
    environment = dict(
        os.environ,
        JAX_PLATFORMS="cpu",
        XLA_FLAGS=f"--xla_force_host_platform_device_count={devices} {late}",
    )
    coordinator = measuring.free_address()
    started = []
    for i in range(processes):
        several = (f"--coordinator={coordinator}", f"--num_processes={processes}",
                   f"--process_id={i}") if processes > 1 else ()  # fmt: skip
        started.append(
            subprocess.Popen(
                [*command, *several], env=environment, text=True, stdout=subprocess.PIPE
            )
        )
    out = [process.communicate(timeout=1800)[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError(f"processes ended with {[p.returncode for p in started]}")
    return json.loads(out[0].strip().splitlines()[-1].removeprefix("RESULT "))


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
