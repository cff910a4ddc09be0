"""Whether what a mesh divides is divided: bytes on a device.

  python -m benchmarks.shard_memory

Parameters, optimizer state and EMA of a DiT of 16 blocks of width 256 with a kernel of gates and
norms a unit, laid out on 8 simulated devices: the bytes on one device, by the arrays themselves,
times the size of the axis, over the bytes of all. 1 is ideal; biases and other small leaves stay
whole. `fsdp8`, `stage4` (with data=2), and beside them `tensor8`, where kernels of gates and norms
stay whole, too, and `zero1`, of the optimizer and EMA over data=8. Exits 1 if fsdp8 is above 1.05
or stage4 above 1.1.
"""

import os

from benchmarks import measuring
from nrdm_jax import config as configuration
from nrdm_jax.processes import lifecycle

BARS = {"fsdp8": 1.05, "stage4": 1.1}
MESHES: dict[str, tuple[dict, int, tuple[str, ...]]] = {
    "fsdp8": ({"data": 1, "fsdp": 8}, 8, ("params", "ema", "opt")),
    "stage4": ({"data": 2, "stage": 4}, 4, ("params", "ema", "opt")),
    "tensor8": ({"data": 1, "tensor": 8}, 8, ("params", "ema", "opt")),
    "zero1": ({"data": 8, "zero1": True}, 8, ("ema", "opt")),
}


def share(mesh: dict, size: int, parts_of: tuple[str, ...]) -> float:
    import jax

    from nrdm_jax import build

    c = configuration.default()
    c.data.name, c.data.shape, c.data.num_classes = "synthetic", (16, 16, 3), 10
    c.model.depth, c.model.width, c.model.heads = 16, 256, 8
    c.train.batch_size = 16
    c.mesh.update(mesh)
    configuration.validate(c)
    state = build.run(c).fresh_state()
    leaves = jax.tree.leaves([getattr(state, name) for name in parts_of])
    device = jax.devices()[0]
    here = sum(
        shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards
        if shard.device == device
    )  # fmt: skip
    return here * size / sum(leaf.nbytes for leaf in leaves)


def run() -> int:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    result = {name: round(share(*MESHES[name]), 4) for name in MESHES}
    measuring.print_result(result)
    return 0 if all(result[name] <= bar for name, bar in BARS.items()) else 1


def main() -> None:
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
