"""What a run would be, without data, weights or a directory."""

import time

from nrdm_jax import build, programs, trees
from nrdm_jax import config as configuration
from nrdm_jax.sharding import partition


def describe(config) -> dict:
    """Prints mesh, parameter table, FLOPs a step and the compiler's memory; returns the sums.

    Raises:
      ValueError: the config does not fit the devices.
    """
    parts = build.run(config)
    state = parts.abstract_state
    print(f"mesh: {dict(parts.mesh.shape)}, {parts.mesh.size} devices\n")
    print_parameters(parts)
    total = trees.count(state.params)
    step_flops = programs.flops_per_step(parts)
    size = configuration.batch_size(config, config.data.shape)
    held = {"parameters": state.params, "EMA": state.ema, "optimizer": state.opt}
    if state.averages:
        held["averages"] = state.averages
    held = {name: partition.bytes_on_device(tree) for name, tree in held.items()}
    print(f"\n{parts.task.in_words}\nparameters: {total:,}")
    print("bytes a device: " + ", ".join(f"{name} {size:,}" for name, size in held.items()))
    print(f"FLOPs a step: {step_flops:.4g} (batch {size})", flush=True)
    before, gib = time.monotonic(), 2.0**30
    memories = []
    for shape in configuration.shapes(config):
        compiled = programs.compiled_step(parts, build.record_dtype(config), shape)
        memories.append(compiled.memory_analysis())
        if config.data.buckets:
            print(
                f"bucket {shape}: batch {configuration.batch_size(config, shape)}, FLOPs a step "
                f"{programs.flops_per_step(parts, shape):.4g}, temporaries "
                f"{memories[-1].temp_size_in_bytes / gib:.2f} GiB a device"
            )
    memory = max(memories, key=lambda m: m.temp_size_in_bytes)
    seconds = time.monotonic() - before
    print(
        "memory a device, by the compiler: "
        f"arguments {memory.argument_size_in_bytes / gib:.2f} GiB, "
        f"temporaries {memory.temp_size_in_bytes / gib:.2f} GiB; compiled in {seconds:.1f} s"
    )
    return {
        "parameters": total,
        "units": parts.task.scanned_units,
        "flops_per_step": step_flops,
        "devices": parts.mesh.size,
        "state_bytes": sum(held.values()),
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "compile_seconds": round(seconds, 1),
    }


def print_parameters(parts: build.Run) -> None:
    """For each parameter its shape, its bytes on a device and how it is divided."""
    leaves = trees.leaves_with_path(parts.abstract_state.params)
    widest = max(len(path) for path, _ in leaves)
    print(
        f"{'parameter':{widest}}  {'shape':>22}  {'type':>8}  {'count':>14}  "
        f"{'bytes a device':>14}  sharding"
    )
    for path, leaf in leaves:
        sharding = _in_words(leaf.sharding.spec, parts.mesh.shape)
        print(
            f"{path:{widest}}  {leaf.shape!s:>22}  {leaf.dtype.name:>8}  {leaf.size:>14,}  "
            f"{partition.bytes_on_device(leaf):>14,}  {sharding}"
        )


def _in_words(spec, shapes) -> str:
    """`-, fsdp, tensor`: for each axis the mesh axes that divide it."""
    axes = (axis if isinstance(axis, tuple) else (axis,) for axis in spec)
    names = ("+".join(name for name in axis if shapes.get(name, 1) > 1) for axis in axes)
    return ", ".join(name or "-" for name in names) or "-"
