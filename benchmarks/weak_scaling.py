"""What a device needs as the job grows and its own work does not: compiled, not run.

  python -m benchmarks.weak_scaling

The train step of configs/nrdm_f_1000.py, 12.6B parameters, 16 examples a device, compiled by the
TPU's compiler for 16 to 4,096 chips of a v5p (fsdp=16) and by CUDA's for 8 to 512 H100s (fsdp=8);
data takes the rest. `bytes_spread`: the largest over the smallest peak of bytes a device, over all
sizes of a machine; beside it what each device receives by collectives, and the instructions of the
program. Exits 1 if bytes_spread is above 1.05, or a job does not fit. Extras: tpu-aot, gpu-aot.

What grows: weights are gathered over fsdp, whose size does not change; gradients are summed over
data, of which each device receives 2 (n - 1) / n of its shard, and that tends to 2. The program
does not grow: its loops run over blocks, and a collective names its groups by a rule. On 16 chips
there is no data axis, and the TPU's compiler cuts gathers into steps of the products that use them.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

from absl import flags

from benchmarks import measuring
from nrdm_jax.processes import lifecycle
from nrdm_jax.sharding import topologies

BAR = 1.05
EXAMPLES = 16  # a device
# Argument of the config -> devices that share the weights, and topologies.
MACHINES = {
    "v5p": (16, ("tpu:v5p:2x2x4", "tpu:v5p:4x4x4", "tpu:v5p:4x8x8", "tpu:v5p:8x8x16",
                 "tpu:v5p:16x16x16")),
    "h100": (8, ("gpu:h100:1x8", "gpu:h100:8x8", "gpu:h100:64x8")),
}  # fmt: skip
KEPT = ("devices", "fits", "peak_gib", "arguments_gib", "temporaries_gib", "collective_gib",
        "instructions", "compile_seconds", "mfu")  # fmt: skip


def define_flags() -> None:
    flags.DEFINE_multi_enum("machines", list(MACHINES), list(MACHINES), "which")


def compiled(machine: str, topology: str, fsdp: int) -> dict:
    """The result of `nrdm_jax.compile_ahead`, in a process of its own.

    Raises:
      RuntimeError: it failed.
    """
    devices = topologies.parse(topology).devices
    sizes = {"train": EXAMPLES * devices, "evaluate": devices, "sample": devices}
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory) / "result.json"
        command = [
            sys.executable, "-m", "nrdm_jax.compile_ahead", f"--topology={topology}",
            f"--config=configs/nrdm_f_1000.py:{machine}", f"--json={file}",
            "--config.mesh.data=-1", f"--config.mesh.fsdp={fsdp}",
            *(f"--config.{part}.batch_size={size}" for part, size in sizes.items()),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not file.exists():
            raise RuntimeError(f"{topology}: exit code {done.returncode}\n{done.stderr[-2000:]}")
        return json.loads(file.read_text())


def run() -> int:
    machines = {name: MACHINES[name] for name in flags.FLAGS.machines}
    for _, names in machines.values():
        extra, packages = topologies.EXTRAS[names[0].split(":")[0]]
        measuring.require(*packages, extra=extra)
    rows: dict[str, list[dict]] = {}
    for machine, (fsdp, names) in machines.items():
        rows[machine] = []
        for topology in names:
            found = compiled(machine, topology, fsdp)
            row = {"topology": topology, **{key: found[key] for key in KEPT}}
            row["collectives"] = {
                f"{one['kind']} over {','.join(one['axes'])}": one["gib"]
                for one in found["collectives"] if one["gib"] >= 0.01
            }  # fmt: skip
            rows[machine].append(row)
            print(json.dumps(row), flush=True)
    spread = {
        machine: max(row["peak_gib"] for row in found) / min(row["peak_gib"] for row in found)
        for machine, found in rows.items()
    }
    measuring.print_result({"bytes_spread": round(max(spread.values()), 4), **rows})
    fits = all(row["fits"] for found in rows.values() for row in found)
    return 0 if fits and max(spread.values()) <= BAR else 1


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
