"""Which meshes a config may be put on, and the reason where it may not."""

import math
from collections.abc import Mapping

from nrdm_jax.config.conditions import nearest_divisor, require
from nrdm_jax.config.text_checks import check_text_parallel
from nrdm_jax.config.tree import FUSED_KERNELS, MESH_AXES, patch_of


def check_mesh(c) -> None:
    """What can be said before the devices are known."""
    sizes = {axis: c.mesh[axis] for axis in MESH_AXES}
    for prefix, given in (("mesh", sizes), ("mesh.slices", c.mesh.slices)):
        for axis in MESH_AXES:
            fills = given[axis] == -1 and prefix == "mesh"
            require(
                fills or given[axis] >= 1,
                f"{prefix}.{axis}",
                f"is {given[axis]}",
                "give a positive number" + (" or -1" if prefix == "mesh" else ""),
            )
    require(
        list(sizes.values()).count(-1) <= 1,
        "mesh",
        "has more than one -1",
        "let one axis only fill",
    )
    known = {axis: max(1, size) * c.mesh.slices[axis] for axis, size in sizes.items()}
    check_parallel(c, known, settled=False)


def check_parallel(c, mesh: Mapping[str, int], settled: bool = True) -> None:
    """Whether the model, the batch and the axes of a mesh of these sizes go together. Not
    `settled`: an axis that fills counts as 1 as yet.

    Raises:
      ValueError: they do not; names the field, the reason and the fix.
    """
    parts = mesh["data"] * mesh["fsdp"]
    micro = c.train.batch_size // c.train.micro_batches
    require(
        micro % parts == 0,
        "train.batch_size",
        f"gives micro-batches of {micro}, not divisible by the {parts} parts of mesh.data and "
        "mesh.fsdp",
        f"make it a multiple of {parts * c.train.micro_batches}",
    )
    if mesh["context"] > 1:
        _check_context(c, mesh)
    elif c.mesh.context != -1 or settled:
        require(
            c.model.attention_kernel not in ("ring", "ulysses"),
            "model.attention_kernel",
            f"is {c.model.attention_kernel}, which is for tokens divided over mesh.context",
            "set mesh.context, or choose xla or blockwise",
        )
    if mesh["stage"] > 1:
        _check_stages(c, mesh, micro)
    check_text_parallel(c, mesh)
    if c.model.size is None:
        require(
            c.model.heads % mesh["tensor"] == 0,
            "model.heads",
            f"is {c.model.heads}, not divisible by mesh.tensor={mesh['tensor']}",
            f"the nearest mesh.tensor that divides is "
            f"{nearest_divisor(c.model.heads, mesh['tensor'])}",
        )


def _check_context(c, mesh: Mapping[str, int]) -> None:
    m, size = c.model, mesh["context"]
    require(
        m.name != "unet",
        "mesh.context",
        f"is {size}, and the levels of model.name=unet need their neighbours' rows in every "
        "convolution",
        "divide the batch instead, by mesh.data or mesh.fsdp",
    )
    require(
        not m.prefix_tokens,
        "mesh.context",
        f"is {size}, and the two tokens of model.prefix_tokens belong to no part of the grid",
        "set model.prefix_tokens=False, or mesh.context=1",
    )
    examples, parts = c.optim.sensitivity_examples, mesh["data"] * mesh["fsdp"]
    require(
        not c.optim.sensitivity_penalty
        or m.attention_kernel not in ("ring", "ulysses")
        or examples % parts == 0,
        "optim.sensitivity_examples",
        f"is {examples}, which model.attention_kernel={m.attention_kernel} divides over the "
        f"{parts} parts of mesh.data and mesh.fsdp",
        f"make it a multiple of {parts}",
    )
    grid = [n // p for n, p in zip(c.data.shape, patch_of(c), strict=False)]
    if m.attention == "factorised":
        require(
            m.attention_kernel not in ("ring", "ulysses"),
            "model.attention_kernel",
            f"is {m.attention_kernel}, and factorised attention keeps each group of tokens whole "
            "on a device",
            "choose xla or blockwise",
        )
        groups = {"frames": grid[0], "tokens of a frame": math.prod(grid[1:])}
    else:
        require(
            m.attention_kernel not in FUSED_KERNELS,
            "model.attention_kernel",
            f"is {m.attention_kernel}, which needs all tokens of an example on a device, and "
            f"mesh.context={size} divides them",
            "choose ring or ulysses, or mesh.context=1",
        )
        groups = {"tokens": math.prod(grid)}
    for name, count in groups.items():
        require(
            count % size == 0,
            "mesh.context",
            f"is {size}, which does not divide the {count} {name} of an example",
            f"the nearest that does is {nearest_divisor(count, size)}",
        )
    if m.attention_kernel == "ulysses" and m.size is None:
        require(
            m.heads % (size * mesh["tensor"]) == 0,
            "model.attention_kernel",
            f"is ulysses, which gives each of mesh.context={size} devices whole heads, and "
            f"model.heads is {m.heads} with mesh.tensor={mesh['tensor']}",
            "choose ring, or a context that divides the heads",
        )


def _check_stages(c, mesh: Mapping[str, int], batch: int) -> None:
    m, p, stages = c.model, c.pipeline, mesh["stage"]
    require(
        m.name == "dit",
        "mesh.stage",
        f"is {stages}, and "
        + (
            "one block of weights is integrated over"
            if m.name == "continuous"
            else f"the skips of model.name={m.name} would have to travel through all stages"
        ),
        "set mesh.stage=1, or choose model.name=dit",
    )
    require(
        m.memory != "reversible",
        "model.memory",
        "is reversible, and stages hold several micro-batches, whose outputs are on other devices",
        "choose remat or sqrt, or mesh.stage=1",
    )
    if m.size is None:
        blocks = m.depth // 2 if m.attention == "factorised" else m.depth
        require(
            blocks % (stages * p.repeats) == 0,
            "mesh.stage",
            f"is {stages}, and {blocks} scanned blocks are not divisible by "
            f"mesh.stage * pipeline.repeats = {stages * p.repeats}",
            f"the nearest product that divides is {nearest_divisor(blocks, stages * p.repeats)}",
        )
    require(
        not c.optim.sensitivity_penalty,
        "optim.sensitivity_penalty",
        "is measured on a few examples, which are not the micro-batches that stages work on",
        "set it to 0, or mesh.stage=1",
    )
    count = p.micro_batches or stages
    require(
        p.repeats == 1 or count >= stages,
        "pipeline.micro_batches",
        f"is {count}, fewer than mesh.stage={stages}: a micro-batch would be back at the first "
        "stage too early",
        f"give at least {stages}, or pipeline.repeats=1",
    )
    parts = mesh["data"] * mesh["fsdp"]
    sizes = {"train.batch_size / train.micro_batches": batch,
             "evaluate.batch_size": c.evaluate.batch_size,
             "sample.batch_size": c.sample.batch_size}  # fmt: skip
    for field, size in sizes.items():
        require(
            size % (count * parts) == 0,
            field,
            f"is {size}, not divisible by {count} micro-batches of the pipeline times {parts} "
            "parts of mesh.data and mesh.fsdp",
            f"make it a multiple of {count * parts}",
        )
