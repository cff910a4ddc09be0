"""Machines that need not be there: what their chips can do, and devices of theirs to compile for.

`tpu:v5p:4x4x4` is a slice of 4 x 4 x 4 chips, `gpu:h100:8x8` eight hosts of eight GPUs, `cpu:8`
eight simulated devices of this machine. The compilers are the ones that run there (libtpu, XLA's
CUDA backend): what they say of memory and collectives is so; times made from the figures here are
estimates.
"""

import importlib.util
import math
import os
import re
from typing import Any, NamedTuple


class Chip(NamedTuple):
    """One device, which on a TPU v7x is half of a chip. Rates are in numbers or bytes a second.

    Attributes:
      flops: dense bfloat16.
      memory: bytes.
      memory_rate: of the device's memory.
      link_rate: into one device, over a torus axis (both directions) of a TPU slice, or from the
        other GPUs of a host.
      network_rate: into one device, from other slices or hosts.
      devices: of a chip.
    """

    flops: float
    memory: float
    memory_rate: float
    link_rate: float
    network_rate: float
    devices: int = 1


GIB = 2.0**30
# platform -> the extra that has its compiler, and packages of it
EXTRAS = {"tpu": ("tpu-aot", ("libtpu",)), "gpu": ("gpu-aot", ("jax_cuda13_plugin",))}
# TPUs: Google's system architecture pages, https://docs.cloud.google.com/tpu/docs/v5p and those of
# the others; links and network as in "How to Scale Your Model" (https://jax-ml.github.io/scaling-book,
# chapters 2 and 3), v7x's from its announcement (9.6 Tb/s a chip, both directions, six links).
# GPUs: NVIDIA's data sheets; NVLink one way; network 200 (A100) and 400 Gb/s a GPU, as in DGX
# machines.
CHIPS = {
    "tpu:v4": Chip(275e12, 32 * GIB, 1.2e12, 90e9, 6.25e9),
    "tpu:v5e": Chip(197e12, 16 * GIB, 0.82e12, 90e9, 3.1e9),
    "tpu:v5p": Chip(459e12, 95 * GIB, 2.77e12, 180e9, 6.25e9),
    "tpu:v6e": Chip(918e12, 32 * GIB, 1.6e12, 180e9, 12.5e9),
    "tpu:tpu7x": Chip(1153e12, 96 * GIB, 3.7e12, 100e9, 6.25e9, devices=2),
    "gpu:a100": Chip(312e12, 85_100_068_864, 2.04e12, 300e9, 25e9),
    "gpu:h100": Chip(989e12, 79_119_843_328, 3.35e12, 450e9, 50e9),
    "gpu:h200": Chip(989e12, 151_397_597_184, 4.8e12, 450e9, 50e9),
    "gpu:b200": Chip(2250e12, 191_514_411_008, 7.67e12, 900e9, 50e9),
}

# What XLA must know of a GPU to compile for it: compute capability, cores, FPUs a core, shared
# memory a core and, opted in, a block, L2 cache, clock in GHz; from NVIDIA's programming guide,
# tables of compute capabilities, and data sheets.
_GPUS: dict[str, dict[str, Any]] = {
    "a100": {"capability": (8, 0), "cores": 108, "fpus": 64, "shared": 167_936, "optin": 166_912,
             "l2": 41_943_040, "clock": 1.41, "name": "NVIDIA A100-SXM4-80GB"},
    "h100": {"capability": (9, 0), "cores": 132, "fpus": 128, "shared": 233_472, "optin": 232_448,
             "l2": 52_428_800, "clock": 1.98, "name": "NVIDIA H100 80GB HBM3"},
    "h200": {"capability": (9, 0), "cores": 132, "fpus": 128, "shared": 233_472, "optin": 232_448,
             "l2": 52_428_800, "clock": 1.98, "name": "NVIDIA H200"},
    "b200": {"capability": (10, 0), "cores": 148, "fpus": 128, "shared": 233_472, "optin": 232_448,
             "l2": 132_644_864, "clock": 1.965, "name": "NVIDIA B200"},
}  # fmt: skip


class Topology(NamedTuple):
    """Attributes:
    platform: tpu, gpu or cpu.
    generation: of the chips; empty for cpu.
    shape: chips along each axis of the slice; of GPUs hosts and GPUs a host.
    """

    platform: str
    generation: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip | None:
        """None of a CPU, whose figures nobody knows."""
        return CHIPS.get(f"{self.platform}:{self.generation}")

    @property
    def devices(self) -> int:
        return math.prod(self.shape) * (self.chip.devices if self.chip else 1)

    @property
    def lowering_platform(self) -> str:
        return {"gpu": "cuda"}.get(self.platform, self.platform)


def parse(name: str) -> Topology:
    """Raises:
    ValueError: the name is not of the form, or the generation is unknown.
    """
    found = re.fullmatch(r"cpu:(\d+)|(tpu|gpu):(\w+):(\d+(?:x\d+)*)", name)
    if not found:
        raise ValueError(
            f"--topology={name!r}; give one like tpu:v5p:4x4x4, gpu:h100:8x8 (hosts x GPUs), cpu:8"
        )
    if found[1]:
        return Topology("cpu", "", (int(found[1]),))
    platform, generation = found[2], found[3]
    shape = tuple(map(int, found[4].split("x")))
    if f"{platform}:{generation}" not in CHIPS:
        known = ", ".join(chip for chip in CHIPS if chip.startswith(platform))
        raise ValueError(f"--topology={name!r}: {generation} is unknown; choose one of {known}")
    axes = {"gpu": (2,), "tpu": (2,) if generation in ("v5e", "v6e") else (3,)}[platform]
    if len(shape) not in axes or 0 in shape:
        raise ValueError(
            f"--topology={name!r}: {platform}:{generation} has {axes[0]} axes, such as "
            + "x".join(["4"] * axes[0])
        )
    return Topology(platform, generation, shape)


def missing_extra(topology: Topology) -> str:
    """The extra whose packages this topology needs and that is not installed; empty if none."""
    extra, modules = EXTRAS.get(topology.platform, ("", ()))
    return extra if any(importlib.util.find_spec(name) is None for name in modules) else ""


def prepare_environment(topology: Topology) -> None:
    """What must be set before jax is imported: no accelerator is looked for."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    added = ""
    if topology.platform == "cpu":
        added = f"--xla_force_host_platform_device_count={topology.devices}"
    if topology.platform == "gpu":
        added = "--xla_gpu_autotune_level=0"  # nothing to try kernels on
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {added}".strip()
    if topology.platform == "tpu":
        # libtpu asks the cloud for its machine, and complains where there is none.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


def devices_of(topology: Topology) -> list:
    """Devices to make a mesh of and compile for; nothing can run on them, but on those of a CPU."""
    import jax
    from jax.experimental import topologies

    if topology.platform == "cpu":
        return jax.devices()[: topology.devices]
    shape = "x".join(map(str, topology.shape))
    if topology.platform == "tpu":
        name = f"{topology.generation}:{shape}"
        # Both cores of a v4 are one device to jax, and two to libtpu unless told.
        told = {"chip_config_name": "megacore"} if topology.generation == "v4" else {}
        described = topologies.get_topology_desc(platform="tpu", topology_name=name, **told)
        return list(described.devices)
    described = topologies.get_topology_desc(
        platform="cuda",
        topology_name=topology.generation,
        target_config=target_config(topology.generation),
        topology=f"1x{shape}",
    )
    return list(described.devices)


def target_config(generation: str) -> str:
    """A GPU as XLA's GpuTargetConfigProto, in text."""
    gpu, chip = _GPUS[generation], CHIPS[f"gpu:{generation}"]
    major, minor = gpu["capability"]
    device = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49_152,
        "shared_memory_per_core": gpu["shared"],
        "threads_per_core_limit": 2048,
        "core_count": gpu["cores"],
        "fpus_per_core": gpu["fpus"],
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65_535,
        "block_dim_limit_z": 65_535,
        "memory_bandwidth": int(chip.memory_rate),
        "l2_cache_size": gpu["l2"],
        "clock_rate_ghz": gpu["clock"],
        "device_memory_size": int(chip.memory),
        "shared_memory_per_block_optin": gpu["optin"],
        "registers_per_core_limit": 65_536,
        "registers_per_block_limit": 65_536,
    }
    lines = "\n".join(f"  {name}: {value}" for name, value in device.items())
    return (
        f"gpu_device_info {{\n{lines}\n"
        f"  cuda_compute_capability {{ major: {major} minor: {minor} }}\n}}\n"
        'platform_name: "CUDA"\n'
        "dnn_version_info { major: 9 minor: 10 patch: 0 }\n"
        f'device_description_str: "{gpu["name"]}"\n'
    )
