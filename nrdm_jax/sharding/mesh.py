"""The device mesh: axes from slow links to fast.

| axis | what it divides |
|---|---|
| data | the batch; with ZeRO-1 the optimizer's state and the EMA as well |
| stage | the blocks of the stack, see `pipeline` |
| fsdp | the batch, and every large weight along its embedding axis |
| context | the tokens of an example, see `context` |
| tensor | heads and hidden channels |
"""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "stage", "fsdp", "context", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(
    sizes: Mapping[str, int],
    devices: Sequence[jax.Device] | None = None,
    slices: Mapping[str, int] | None = None,
) -> Mesh:
    """A mesh over all devices.

    Args:
      sizes: devices along each axis within a slice, that is, over its own links (ICI, NVLink); one
        -1 takes what is left.
      devices: all by default.
      slices: slices along each axis, between which the network is slow (DCN); one by default. An
        axis has the product of both.

    Raises:
      ValueError: the product of the sizes is not the number of devices, or the slices are not as
        many as the devices say.
    """
    devices = jax.devices() if devices is None else list(devices)
    across = [(slices or {}).get(axis, 1) for axis in AXES]
    within = [sizes.get(axis, 1) for axis in AXES]
    known = math.prod(size for size in within if size != -1) * math.prod(across)
    within = [len(devices) // known if size == -1 else size for size in within]
    if math.prod(within) * math.prod(across) != len(devices):
        given = _words("mesh.", sizes) + _words("mesh.slices.", slices or {})
        raise ValueError(
            f"mesh: {', '.join(given) or 'one device'} make {known} devices, but there are "
            f"{len(devices)}; let one axis be -1, or make their product the number of devices"
        )
    return Mesh(_grid(within, across, devices), AXES)


def _words(prefix: str, sizes: Mapping[str, int]) -> list[str]:
    return [f"{prefix}{axis}={sizes[axis]}" for axis in AXES if sizes.get(axis, 1) != 1]


def _grid(within: list[int], across: list[int], devices: list[jax.Device]) -> np.ndarray:
    if math.prod(across) == 1:
        try:
            return mesh_utils.create_device_mesh(within, devices)
        except NotImplementedError:
            return np.asarray(devices).reshape(within)
    found = {getattr(device, "slice_index", None) for device in devices}
    if found != {None} and len(found) > 1:
        if len(found) != math.prod(across):
            raise ValueError(
                f"mesh.slices: {math.prod(across)} slices were asked for, and the devices are in "
                f"{len(found)}"
            )
        return mesh_utils.create_hybrid_device_mesh(within, across, devices)
    # Devices that do not say where they are, as hosts of one machine: neighbours are a slice.
    apart = np.asarray(devices).reshape(*across, *within)
    count = len(AXES)
    order = [axis for i in range(count) for axis in (i, count + i)]
    joined = [a * w for a, w in zip(across, within, strict=True)]
    return apart.transpose(order).reshape(joined)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over all axes that take examples."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def rows_here(sharding: jax.sharding.Sharding | None, size: int) -> Sequence[int]:
    """Rows of a batch of this size that devices of this process hold; without a sharding all."""
    if sharding is None:
        return range(size)
    indices = sharding.addressable_devices_indices_map((size,)).values()
    return sorted({row for index in indices if index for row in range(size)[index[0]]})


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_devices(mesh: Mesh) -> int:
    """Parts into which a batch is divided."""
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
