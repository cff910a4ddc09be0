"""The device mesh: axes from slow links to fast."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")
BATCH_AXES = ("data", "fsdp")


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices with the given size of each axis; one -1 takes what is left.

    Raises:
      ValueError: the product of the sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = [sizes[axis] for axis in AXES]
    known = math.prod(size for size in shape if size != -1)
    shape = [len(devices) // known if size == -1 else size for size in shape]
    if math.prod(shape) != len(devices):
        given = ", ".join(f"mesh.{axis}={sizes[axis]}" for axis in AXES)
        raise ValueError(
            f"mesh: {given} make {known} devices, but there are {len(devices)}; "
            "let one axis be -1, or make their product the number of devices"
        )
    try:
        grid = mesh_utils.create_device_mesh(shape, devices)
    except NotImplementedError:
        grid = np.asarray(devices).reshape(shape)
    return Mesh(grid, AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over all axes that take examples."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_devices(mesh: Mesh) -> int:
    """Devices over which a batch is divided."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(field: str, batch: int, mesh: Mesh) -> None:
    """Raises:
    ValueError: a batch cannot be divided evenly over the devices.
    """
    devices = batch_devices(mesh)
    if batch % devices:
        nearest = max(devices, round(batch / devices) * devices)
        raise ValueError(
            f"{field} is {batch}, not divisible by the {devices} devices of mesh "
            f"{dict(mesh.shape)}; the nearest that is: {nearest}"
        )
