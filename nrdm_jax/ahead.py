"""What a job would be on machines that one does not have: the same program, compiled for them."""

import math
import pathlib
import time

import jax
import jax.numpy as jnp

from nrdm_jax import build, drawing, dry_run, networks, programs, trees
from nrdm_jax import config as configuration
from nrdm_jax.models import memory
from nrdm_jax.sharding import collectives, partition, roofline, topologies
from nrdm_jax.sharding.topologies import GIB, Topology
from nrdm_jax.signatures import Shape
from nrdm_jax.training import charts

# Of a device's memory, what runtimes and their buffers leave to a program.
USABLE = 0.92
# Reads and writes of an array of the trunk's size that a unit makes in a pass, about: its norm,
# three projections or the wide layer of an MLP, the gate.
TRUNKS_A_UNIT = 12
OF_BUCKETS = ("shape", "batch", "peak_gib", "fits", "flops", "compile_seconds", "step_seconds")


def view(config, topology: Topology, what: str = "train", table: bool = False) -> dict:
    """Lowers and compiles the train step of each shape of the data, or the sampler of `data.shape`,
    for a topology; prints what it needs, and with `table` each parameter.

    Returns what there is to say of the program that needs the most memory, and of several shapes
    a few figures of each, `buckets`.

    Raises:
      ValueError: the config does not fit the topology.
    """
    if config.task != "diffusion":
        raise ValueError(f"task is {config.task}; programs of task=diffusion are compiled ahead")
    # A compile that was read from a cache would not tell its time.
    jax.config.update("jax_enable_compilation_cache", False)
    parts = build.run(config, topologies.devices_of(topology))
    print(
        f"mesh: {dict(parts.mesh.shape)}, {parts.mesh.size} devices of {_words(topology)}",
        flush=True,
    )
    if table:
        dry_run.print_parameters(parts)
    reference = tuple(config.data.shape)
    shapes = configuration.shapes(config) if what == "train" else (reference,)
    found = []
    for shape in shapes:
        if len(shapes) > 1:
            print(f"bucket of {shape}, batch {configuration.batch_size(config, shape)}", flush=True)
        found.append(_compiled(parts, topology, what, shape))
    largest = max(found, key=lambda row: row["peak_gib"])
    if len(found) == 1:
        return largest
    print(f"most memory of {len(found)} buckets: that of {tuple(largest['shape'])}", flush=True)
    return largest | {
        "buckets": [{name: row[name] for name in OF_BUCKETS if name in row} for row in found]
    }


def _compiled(parts: build.Run, topology: Topology, what: str, shape: Shape) -> dict:
    """Of the program of a shape; printed."""
    before = time.monotonic()
    if what == "train":
        dtype, platform = build.record_dtype(parts.config), topology.lowering_platform
        lowered = programs.lowered_step(parts, dtype, platform, shape=shape)
    else:
        lowered = programs.lowered_sampler(parts, topology.lowering_platform)
    lowered_at = time.monotonic()
    program = lowered.compile()
    seconds = {"lower": lowered_at - before, "compile": time.monotonic() - lowered_at}

    text = program.as_text()
    sent = collectives.collectives(text, dict(parts.mesh.shape))
    result = _summary(parts, what, shape) | _memory(parts, program, topology, what)
    result["lower_seconds"] = round(seconds["lower"], 1)
    result["compile_seconds"] = round(seconds["compile"], 1)
    result["instructions"] = collectives.instructions(text)
    result["custom_calls"] = collectives.custom_calls(text)
    result["products"] = collectives.products(text)
    result["collective_gib"] = round(sum(row.bytes for row in sent) / GIB, 3)
    result["collectives"] = [
        {"kind": row.kind, "axes": list(row.axes), "count": row.times,
         "gib": round(row.bytes / GIB, 4)}
        for row in sent
    ]  # fmt: skip
    if topology.chip:
        result |= _times(parts, topology, sent, result, what, shape)
    _print(result, topology)
    return result


def sweep(config, topology: Topology, what: str, most: int) -> list[dict]:
    """`view` on every mesh of data, fsdp and tensor whose state leaves room for activations, those
    with the most data first, at most so many; the ones that fit by their estimated time, then the
    others."""
    found = []
    for sizes in _meshes(config, topology)[:most]:
        c = config.copy_and_resolve_references()
        c.mesh.update(sizes)
        name = " ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)
        print(f"\n== {name or 'one device'}", flush=True)
        try:
            configuration.validate(c)
            found.append({"mesh": sizes, **view(c, topology, what)})
        except ValueError as error:
            print(f"refused: {error}")
        except jax.errors.JaxRuntimeError as error:  # as when a TPU's compiler finds no room
            first = str(error).splitlines()[0]
            print(f"not compiled: {first[:300]}")
            found.append({"mesh": sizes, "fits": False, "reason": first[:300]})
    return sorted(found, key=lambda row: (row["fits"] is False, row.get("step_seconds", math.inf)))


def _meshes(config, topology: Topology) -> list[dict[str, int]]:
    count = topology.devices
    powers = [2**i for i in range(count.bit_length()) if count % 2**i == 0]
    found = []
    for tensor in powers[:4]:
        for fsdp in powers:
            if (count // tensor) % fsdp == 0:
                data = count // tensor // fsdp
                found.append({"data": data, "stage": 1, "fsdp": fsdp, "context": 1,
                              "tensor": tensor})  # fmt: skip
    state = sum(
        leaf.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(build.abstract_state(config))
    )  # fmt: skip
    room = USABLE * topology.chip.memory if topology.chip else math.inf
    return [
        sizes for sizes in sorted(found, key=lambda s: (s["tensor"], -s["data"]))
        if state / (sizes["fsdp"] * sizes["tensor"]) < room
    ]  # fmt: skip


def chart(path: pathlib.Path, rows: list[dict], topology: Topology) -> None:
    """The memory of a device, a bar a row."""
    bars = {
        " ".join(f"{a}={n}" for a, n in row.get("mesh", {}).items() if n > 1) or "this mesh":
            row["memory_gib"]
        for row in rows if "memory_gib" in row
    }  # fmt: skip
    room = topology.chip.memory / GIB if topology.chip else None
    charts.memory_chart(path, f"memory of a device of {_words(topology)}", bars, room)


def _words(topology: Topology) -> str:
    shape = "x".join(map(str, topology.shape))
    return ":".join(part for part in (topology.platform, topology.generation, shape) if part)


def _summary(parts: build.Run, what: str, shape: Shape) -> dict:
    return {
        "what": what,
        "shape": list(shape),
        "batch": _batch(parts, what, shape),
        "devices": parts.mesh.size,
        "parameters": trees.count(parts.abstract_state.params),
        "flops": programs.flops_per_step(parts, shape)
        if what == "train"
        else programs.flops_per_batch(parts),
    }


def _batch(parts: build.Run, what: str, shape: Shape) -> int:
    """Examples that the program is of."""
    if what == "train":
        return configuration.batch_size(parts.config, shape)
    return drawing.batch_size(parts.config, parts.mesh)


def _memory(parts: build.Run, program, topology: Topology, what: str) -> dict:
    """By the compiler; what the arguments are of, by their shards."""
    stats = program.memory_analysis()
    arguments, temporaries = stats.argument_size_in_bytes, stats.temp_size_in_bytes
    peak = arguments + temporaries + stats.output_size_in_bytes - stats.alias_size_in_bytes
    state = parts.abstract_state
    named = {"params": state.params, "ema": state.ema, "optimizer": state.opt}
    if state.averages:
        named["averages"] = state.averages
    if what != "train":
        named = {"params": state.ema}
    held = {name: partition.bytes_on_device(tree) / GIB for name, tree in named.items()}
    held["batch"] = max(0.0, arguments / GIB - sum(held.values()))
    held["temporaries"] = temporaries / GIB
    room = topology.chip.memory if topology.chip else None
    return {
        "arguments_gib": round(arguments / GIB, 3),
        "temporaries_gib": round(temporaries / GIB, 3),
        "peak_gib": round(peak / GIB, 3),
        "room_gib": room and round(room / GIB, 1),
        "fits": peak <= USABLE * room if room else None,
        "memory_gib": {name: round(value, 3) for name, value in held.items()},
    }


def _times(
    parts: build.Run, topology: Topology, sent, found: dict, what: str, shape: Shape
) -> dict:
    """The roofline estimate. Not measured."""
    assert topology.chip
    c, mesh = configuration.at_shape(parts.config, shape), parts.mesh.shape
    forwards = memory.FORWARDS[c.model.memory] if what == "train" else 1
    backward = 2 if what == "train" else 0
    recomputed = (forwards + backward) / (1 + backward)
    if mesh["stage"] > 1:
        busy = c.pipeline.repeats * (c.pipeline.micro_batches or mesh["stage"])
        recomputed *= (busy + mesh["stage"] - 1) / busy
    net = networks.network(c)
    width = jnp.dtype(c.model.branch_dtype).itemsize
    examples = found["batch"] / (mesh["data"] * mesh["fsdp"] * mesh["context"])
    passes = (forwards + backward) if what == "train" else c.sample.steps
    weights = found["parameters"] * width / (mesh["tensor"] * mesh["stage"])
    trunks = TRUNKS_A_UNIT * net.scanned_units / mesh["stage"] * examples * net.trunk_size * width
    state = 2 * found["arguments_gib"] * GIB if what == "train" else 0
    estimate = roofline.estimate(
        topology.chip, parts.mesh, sent,
        model_flops=found["flops"], recomputed=recomputed,
        traffic=state + passes * (weights + trunks),
    )  # fmt: skip
    named = {
        "compute_seconds": estimate.compute,
        "memory_seconds": estimate.memory,
        "collective_seconds": estimate.overlapping + estimate.waiting,
        "step_seconds": estimate.seconds,
        "mfu": estimate.mfu,
        "mfu_overlapped": estimate.mfu_overlapped,
        "mfu_not_overlapped": estimate.mfu_not_overlapped,
    }
    return {name: round(value, 4) for name, value in named.items()}


def _print(result: dict, topology: Topology) -> None:
    print(
        f"parameters: {result['parameters']:,}; FLOPs, counted from the model: "
        f"{result['flops']:.4g}"
    )
    held = ", ".join(f"{name} {value:.2f}" for name, value in result["memory_gib"].items())
    fits = {True: ": fits", False: ": DOES NOT FIT", None: ""}[result["fits"]]
    of = f" of {result['room_gib']} GiB, {USABLE:.0%} usable" if result["room_gib"] else ""
    print(f"memory a device, by the compiler, GiB: {held}; peak {result['peak_gib']:.2f}{of}{fits}")
    for row in result["collectives"]:
        print(f"  {row['kind']:18} over {', '.join(row['axes']):14} {row['count']:7,} times "
              f"{row['gib']:9.3f} GiB a device")  # fmt: skip
    if topology.chip:
        print(
            f"ESTIMATE by roofline, not measured: step {result['step_seconds']:.3f} s (compute, at "
            f"the peak of bfloat16, {result['compute_seconds']:.3f}, memory "
            f"{result['memory_seconds']:.3f}, collectives "
            f"{result['collective_seconds']:.3f}), MFU {result['mfu']:.2f}; all collectives hidden "
            f"{result['mfu_overlapped']:.2f}, none {result['mfu_not_overlapped']:.2f}"
        )
    print(
        f"lowered in {result['lower_seconds']} s, compiled in {result['compile_seconds']} s",
        flush=True,
    )
