"""Whether every mesh trains the network that one device trains.

  python -m benchmarks.mesh_equivalence

Ten losses of the train step, float32, on 8 simulated devices against one: every mesh axis alone,
every pair and every triple of axes, for a flow-shaped DiT (attention by ring and by Ulysses where
context divides the tokens), a U-ViT and a factorised video DiT; once more with ZeRO-1, two slices,
and two processes of 4 devices each. Zero-initialised leaves are drawn from N(0, 0.02^2) first.
`worst` is the largest relative difference; `refused` lists the meshes that are refused, with the
reason.
Exits 1 if worst is above 1e-5, or a mesh of the flow or video model is refused.
"""

import itertools
import json
import os
import pathlib
import sys
import tempfile

from absl import flags

from benchmarks import jobs, measuring
from nrdm_jax import config as configuration
from nrdm_jax.config import MESH_AXES
from nrdm_jax.processes import lifecycle

BAR = 1e-5
DEVICES = 8
LONG = 600.0  # seconds that no case takes
MODELS = ("flow", "uvit", "video")
NEVER_REFUSED = ("flow", "video")


def define_flags() -> None:
    flags.DEFINE_list("models", ",".join(MODELS), "of flow, uvit, video")
    flags.DEFINE_integer("steps", 10, "losses of each mesh", lower_bound=1)
    flags.DEFINE_string("case", None, "JSON of one case, for this process alone: how the benchmark "
                        "starts processes itself")  # fmt: skip
    jobs.define_flags()
    flags.DEFINE_string("out", "", "file for the losses of a case: gloo writes to stdout")


def config(model: str):
    """8 blocks of width 64 on pictures or clips; every axis divides it by 8."""
    c = configuration.default()
    c.data.name, c.data.num_classes, c.data.shape = "synthetic", 4, (8, 8, 3)
    c.model.patch = (2,)
    c.model.depth, c.model.width, c.model.heads = 8, 64, 8
    c.train.batch_size = c.evaluate.batch_size = c.sample.batch_size = 16
    c.optim.learning_rate = 1e-3
    if model == "uvit":
        c.model.name, c.model.depth = "uvit", 5
    if model == "video":
        c.data.shape, c.model.patch = (8, 8, 8, 3), (1, 2, 2)
        c.model.attention, c.model.depth = "factorised", 16
    return c


def meshes() -> list[dict]:
    """Sizes of every axis alone, every pair, every triple, of 8 devices."""
    found = []
    for count, sizes in ((1, (8,)), (2, (2, 4)), (3, (2, 2, 2))):
        for axes in itertools.combinations(MESH_AXES, count):
            found.append(dict(zip(axes, sizes, strict=True)))
    return found


def cases(model: str) -> list[dict]:
    """Each {mesh, and settings that go with it}."""
    found = []
    for mesh in meshes():
        kernels = ("ring", "ulysses") if model == "flow" and "context" in mesh else ("xla",)
        found += [{"mesh": mesh, "kernel": kernel} for kernel in kernels]
    found.append({"mesh": {"data": 4, "fsdp": 2}, "kernel": "xla", "zero1": True})
    found.append({"mesh": {"data": 2, "tensor": 2}, "kernel": "xla", "slices": {"data": 2}})
    return found


def configured(model: str, case: dict):
    c = config(model)
    c.mesh.data = 1
    for axis, size in case["mesh"].items():
        c.mesh[axis] = size
    for axis, size in case.get("slices", {}).items():
        c.mesh.slices[axis] = size
    c.mesh.zero1 = case.get("zero1", False)
    c.model.attention_kernel = case["kernel"]
    configuration.validate(c)
    return c


def losses(c, devices, steps: int) -> list[float]:
    """Of the train step, from drawn zeros."""
    import jax

    from nrdm_jax import build, programs, trees
    from nrdm_jax.data.sources import synthetic

    parts = build.run(c, devices)

    def drawn(state):
        params = trees.drawn_zeros(state.params, jax.random.key(7))
        return state.replace(params=params, ema=jax.tree.map(lambda x: x.copy(), params))

    shardings = jax.tree.map(lambda leaf: leaf.sharding, parts.abstract_state)
    state = jax.jit(drawn, donate_argnums=0, out_shardings=shardings)(parts.fresh_state())
    source = synthetic(tuple(c.data.shape), c.data.num_classes, "train")
    step = programs.compiled_step(parts, source.dtype)
    batches = build.train_loader(c, source, parts.mesh).iterate(0)
    found = []
    for batch in itertools.islice(batches, steps):
        state, metrics = step(state, batch)
        found.append(float(metrics["loss"]))
    return found


def difference(found, reference) -> float:
    return max(abs(a / b - 1) for a, b in zip(found, reference, strict=True))


def in_two_processes(case: dict, steps: int) -> list[float]:
    """The losses of the flow model, the case's mesh over two processes of 4 devices on loopback.

    Raises:
      RuntimeError: a process failed, or they disagree.
    """
    with tempfile.TemporaryDirectory() as directory:
        files = [pathlib.Path(directory) / f"{i}.json" for i in (0, 1)]
        command = [sys.executable, "-m", "benchmarks.mesh_equivalence", f"--steps={steps}",
                   f"--case={json.dumps(case)}"]  # fmt: skip
        commands = [
            [*command, f"--out={file}", *each]
            for file, each in zip(files, jobs.meeting(2), strict=True)
        ]
        logs = [file.with_suffix(".log") for file in files]
        variables = jobs.variables(DEVICES // 2, optimized=False)
        jobs.finish(jobs.start(commands, logs, variables), logs, LONG)
        one, other = (json.loads(file.read_text()) for file in files)
    if one != other:
        raise RuntimeError(f"processes disagree: {one}, {other}")
    return one


def run_case() -> None:
    """One process of `in_two_processes`."""
    f = flags.FLAGS
    from nrdm_jax.processes import distributed

    distributed.start(f.coordinator, f.num_processes, f.process_id)
    import jax

    found = losses(configured("flow", json.loads(f.case)), jax.devices(), f.steps)
    pathlib.Path(f.out).write_text(json.dumps(found))


def run() -> int:
    f = flags.FLAGS
    if f.case:
        run_case()
        return 0
    # Compiling is most of the time.
    os.environ.update(jobs.variables(DEVICES, optimized=False))
    import jax

    worst, refused, count = {}, [], 0
    for model in f.models:
        reference = losses(
            configured(model, {"mesh": {}, "kernel": "xla"}), jax.devices()[:1], f.steps
        )
        print(f"{model}, one device: {reference[0]:.4f} to {reference[-1]:.4f}", flush=True)
        several = [(case, 1) for case in cases(model)]
        if model == "flow":
            several += [({"mesh": mesh, "kernel": "ring" if "context" in mesh else "xla"}, 2)
                        for mesh in ({"data": 2, "fsdp": 4}, {"stage": 2, "tensor": 4},
                                     {"context": 8})]  # fmt: skip
        for case, processes in several:
            name = f"{model} {json.dumps(case)}" + (", two processes" if processes > 1 else "")
            try:
                c = configured(model, case)
            except ValueError as error:
                refused.append({"model": model, **case, "reason": str(error)})
                print(f"{name}: refused: {error}", flush=True)
                continue
            if processes > 1:
                found = in_two_processes(case, f.steps)
            else:
                found = losses(c, jax.devices(), f.steps)
            worst[name] = difference(found, reference)
            count += 1
            print(f"{name}: {worst[name]:.1e}", flush=True)
    largest = max(worst.values())
    measuring.print_result({"worst": float(f"{largest:.2e}"), "meshes": count, "refused": refused})
    wrongly = [r for r in refused if r["model"] in NEVER_REFUSED]
    return 0 if largest <= BAR and not wrongly else 1


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
