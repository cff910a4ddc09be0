"""An estimate of the time of a step from what a compiled program computes, reads and sends.

It is a roofline: each resource at its published peak. No time here was measured.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from nrdm_jax.sharding.collectives import Collective
from nrdm_jax.sharding.topologies import Chip

# Weights of the next block can be gathered, and gradients of the last one summed, while a block is
# computed; what goes along the other axes is needed at once.
CAN_OVERLAP = frozenset({"data", "fsdp"})


class Estimate(NamedTuple):
    """Seconds of a step, and model FLOPs over what the devices' peak could do in that time.

    Attributes:
      compute: recomputation and idle stages included.
      memory: of reading and writing the device's memory.
      overlapping, waiting: of collectives that computation can hide, and that it cannot.
      seconds: the greatest of the first three, and what cannot be hidden.
      mfu, mfu_overlapped, mfu_not_overlapped: for `seconds`; were all collectives hidden; and none.
    """

    compute: float
    memory: float
    overlapping: float
    waiting: float
    seconds: float
    mfu: float
    mfu_overlapped: float
    mfu_not_overlapped: float


def rate(chip: Chip, devices: Sequence[jax.Device]) -> float:
    """Bytes a second into each of these devices from the others: over each torus axis along which
    they differ, between GPUs of a host, or over the network."""
    if len({getattr(device, "slice_index", 0) for device in devices}) > 1:
        return chip.network_rate
    if devices[0].platform == "tpu":
        axes = sum(
            len(set(places)) > 1 for places in zip(*(d.coords for d in devices), strict=True)
        )
        return chip.link_rate * max(axes, 1)  # halves of one chip are nearer still
    if len({device.process_index for device in devices}) > 1:
        return chip.network_rate
    return chip.link_rate


def estimate(
    chip: Chip,
    mesh: Mesh,
    found: Sequence[Collective],
    *,
    model_flops: float,
    recomputed: float,
    traffic: float,
) -> Estimate:
    """Args:
    chip: of the mesh's devices.
    found: of the program.
    model_flops: of a step, of all devices together, nothing counted twice.
    recomputed: FLOPs done over model FLOPs; stages that idle count as if they did some.
    traffic: bytes that a device reads and writes in its memory.
    """
    devices = mesh.devices.flatten()
    seconds = {True: 0.0, False: 0.0}
    for one in found:
        hidden = CAN_OVERLAP.issuperset(one.axes)
        seconds[hidden] += one.bytes / rate(chip, [devices[place] for place in one.group])
    ideal = model_flops / devices.size / chip.flops
    compute, memory = ideal * recomputed, traffic / chip.memory_rate
    busy = max(compute, memory)
    likely = max(busy, seconds[True]) + seconds[False]
    return Estimate(
        compute,
        memory,
        seconds[True],
        seconds[False],
        likely,
        ideal / likely,
        ideal / max(busy, seconds[True], seconds[False]),
        ideal / (busy + seconds[True] + seconds[False]),
    )
