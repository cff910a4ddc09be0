"""The processes of one job, all on this machine, for benchmarks of several of them."""

import os
import pathlib
import socket
import subprocess
from collections.abc import Mapping, Sequence

from absl import flags

UNOPTIMIZED = "--xla_backend_optimization_level=0"  # machine code that is soon there, and slow


def define_flags() -> None:
    """Of a benchmark's own workers: what `meeting` gives."""
    flags.DEFINE_string("coordinator", "", "of workers, HOST:PORT: the benchmark starts them")
    flags.DEFINE_integer("num_processes", 1, "of workers")
    flags.DEFINE_integer("process_id", 0, "of a worker")


def free_port() -> int:
    """One of this machine that nobody listens at now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def meeting(processes: int) -> list[list[str]]:
    """What the flags of each of so many processes say of the others; of one, nothing."""
    if processes == 1:
        return [[]]
    coordinator = f"--coordinator=127.0.0.1:{free_port()}"
    return [
        [coordinator, f"--num_processes={processes}", f"--process_id={i}"] for i in range(processes)
    ]


def variables(devices: int = 1, *, optimized: bool = True) -> dict[str, str]:
    """Of the environment of a process that has so many simulated devices.

    Args:
      devices: of it.
      optimized: whether machine code should be fast, rather than soon there.
    """
    given = [
        f"--xla_force_host_platform_device_count={devices}",
        # Devices that share two cores may come late to a collective.
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    ]
    if not optimized:
        given.append(UNOPTIMIZED)
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(given)}


def start(
    commands: Sequence[Sequence[str]],
    logs: Sequence[pathlib.Path],
    environment: Mapping[str, str],
    mode: str = "w",
) -> list[subprocess.Popen]:
    """Processes, one for each command; what each says goes to its log.

    Args:
      commands: with their arguments.
      logs: one for each.
      environment: what is added to that of this process.
      mode: of the logs.
    """
    started = []
    for command, log in zip(commands, logs, strict=True):
        with log.open(mode) as file:
            started.append(
                subprocess.Popen(
                    command, env=os.environ | environment, stdout=file, stderr=subprocess.STDOUT
                )
            )
    return started


def ended(processes: Sequence[subprocess.Popen], seconds: float) -> list[int]:
    """Exit codes; one that does not end within so many seconds is killed."""
    codes = []
    for process in processes:
        try:
            codes.append(process.wait(timeout=seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            codes.append(process.wait())
    return codes


def said(logs: Sequence[pathlib.Path]) -> str:
    """The last of each."""
    return "\n".join(log.read_text(errors="replace")[-2000:] for log in logs)


def finish(
    processes: Sequence[subprocess.Popen], logs: Sequence[pathlib.Path], seconds: float
) -> None:
    """Waits for the end of all.

    Raises:
      RuntimeError: one failed or did not end in time, with what they said last.
    """
    codes = ended(processes, seconds)
    if any(codes):
        raise RuntimeError(f"processes ended with {codes}:\n{said(logs)}")
