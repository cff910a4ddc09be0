"""Whether a run that changes its devices on the way is the run that does not.

  python -m benchmarks.elastic

20 steps of openmoji32:smoke, from weights whose zeros are drawn from N(0, 0.02^2), in one go on 8
simulated devices; and in five legs, each stopped by a signal after 4 steps and gone on with by
other processes: on 8 devices, 4, 1, two processes of 4 (mesh data=2, fsdp=4), and 8 again.
`fingerprints_equal`: the sha256 of every leaf that a leg ended with is that of what the next began
with. `batches_equal`: so are those of the global batches of every step, as the step got them.
`loss_difference`: the largest relative one of a step. Exits 1 unless both hold and it is at most
1e-5.
"""

import hashlib
import itertools
import json
import os
import pathlib
import sys
import tempfile

from absl import flags

from benchmarks import jobs, measuring
from nrdm_jax import config as configuration
from nrdm_jax.processes import lifecycle

BAR = 1e-5
LONG = 1800.0  # seconds that no leg takes
STEPS, STEPS_A_LEG = 20, 4
# (processes, devices of each, mesh)
WHOLE = (1, 8, {})
LEGS = (WHOLE, (1, 4, {}), (1, 1, {}), (2, 4, {"data": 2, "fsdp": 4}), WHOLE)


def define_flags() -> None:
    flags.DEFINE_string("config", "configs/openmoji32.py:smoke", "of the run")
    flags.DEFINE_string("leg", None, "JSON of one process of a leg: how the benchmark starts them")
    jobs.define_flags()


def run_config(mesh: dict, init_from: str):
    path, _, argument = flags.FLAGS.config.partition(":")
    c = configuration.of_file(path, pathlib.Path(path).stem, argument)
    c.train.steps, c.log.every = STEPS, 1
    c.train.ema_widths = (0.1,)
    c.evaluate.every = c.sample.every = 0
    c.checkpoint.init_from = init_from
    c.mesh.update(mesh)
    configuration.validate(c)
    return c


def make_start(workdir: pathlib.Path) -> None:
    """A run of one checkpoint, whose weights are all drawn."""
    import jax

    from nrdm_jax import build, trees
    from nrdm_jax.checkpointing.manager import Checkpoints
    from nrdm_jax.training.state import save_items

    c = run_config({}, "")
    c.checkpoint.init_from = None
    state = build.run(c).fresh_state()
    drawn = trees.drawn_zeros(state.params, jax.random.key(7))
    checkpoints = Checkpoints(str(workdir / "checkpoints"))
    checkpoints.save(1, save_items(state.replace(ema=drawn)), {"records_seen": 0})
    checkpoints.wait()
    checkpoints.close()
    (workdir / "config.json").write_text(json.dumps(configuration.to_dict(c)))


def digests(tree) -> dict[str, str]:
    """Path -> sha256 of type, shape and bytes of every leaf, of however many processes."""
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from nrdm_jax import trees

    first = jax.tree.leaves(tree)[0]
    if not first.is_fully_addressable:
        everywhere = NamedSharding(first.sharding.mesh, PartitionSpec())
        tree = jax.jit(lambda x: x, out_shardings=everywhere)(tree)
    found = {}
    for path, leaf in trees.leaves_with_path(tree):
        value = np.ascontiguousarray(leaf.addressable_data(0) if leaf.is_fully_replicated else leaf)
        told = f"{value.dtype} {value.shape}".encode()
        found[path] = hashlib.sha256(told + value.tobytes()).hexdigest()
    return found


def run_leg(leg: dict) -> None:
    """One process of a leg: trains so many steps, with a record of what they got and gave."""
    from nrdm_jax.processes import distributed

    f = flags.FLAGS
    if f.coordinator:
        distributed.start(f.coordinator, f.num_processes, f.process_id)
    from nrdm_jax import programs, training_run
    from nrdm_jax.processes.exit_codes import PREEMPTED, Stop
    from nrdm_jax.training.state import save_items

    record: dict = {"batches": [], "losses": []}

    class Recorded(programs.Steps):
        def __call__(self, state, batch):
            if not record["batches"]:
                record["restored"] = digests(save_items(state))
            record["batches"].append(digests(dict(batch)))
            state, metrics = super().__call__(state, batch)
            record["losses"].append(float(metrics["loss"]))
            if len(record["losses"]) == leg["steps"]:
                record["saved"] = digests(save_items(state))
            return state, metrics

    class Signals(lifecycle.Signals):
        def stop_requested(self) -> bool:
            if len(record["losses"]) == leg["steps"]:
                self.received = "the end of a leg"
            return self.received is not None

    programs.Steps = Recorded  # type: ignore[misc]
    config = run_config(leg["mesh"], leg["start"])
    try:
        training_run.train(config, leg["workdir"], signals=Signals())
    except Stop as stop:
        if stop.exit_code != PREEMPTED:
            raise
    pathlib.Path(leg["out"]).write_text(json.dumps(record))


def ran(place: tuple, workdir: pathlib.Path, start: pathlib.Path, steps: int) -> dict:
    """The record of a leg, on which its processes agree.

    Raises:
      RuntimeError: a process failed, or they disagree.
    """
    processes, devices, mesh = place
    outs = [workdir.parent / f"{workdir.name}_{i}.json" for i in range(processes)]
    leg = {"mesh": mesh, "steps": steps, "workdir": str(workdir), "start": str(start)}
    commands = [
        [sys.executable, "-m", "benchmarks.elastic", f"--config={flags.FLAGS.config}",
         f"--leg={json.dumps(leg | {'out': str(out)})}", *each]
        for out, each in zip(outs, jobs.meeting(processes), strict=True)
    ]  # fmt: skip
    logs = [out.with_suffix(".log") for out in outs]
    jobs.finish(jobs.start(commands, logs, jobs.variables(devices)), logs, LONG)
    records = [json.loads(out.read_text()) for out in outs]
    if any(record != records[0] for record in records):
        raise RuntimeError("the processes of a leg disagree")
    where = f"{processes} x {devices} devices" + (f", mesh {mesh}" if mesh else "")
    print(f"{where}: losses {[round(loss, 6) for loss in records[0]['losses']]}", flush=True)
    return records[0]


def run() -> int:
    if flags.FLAGS.leg:
        run_leg(json.loads(flags.FLAGS.leg))
        return 0
    with tempfile.TemporaryDirectory() as directory:
        root = pathlib.Path(directory)
        start, whole, legs = (root / name for name in ("start", "whole", "legs"))
        os.environ.update(jobs.variables(1))
        make_start(start)
        reference = ran(WHOLE, whole, start, STEPS)
        found = [ran(place, legs, start, STEPS_A_LEG) for place in LEGS]
    changed = [
        f"leg {i}: {path}"
        for i, (one, other) in enumerate(itertools.pairwise(found), 1)
        for path in one["saved"].keys() | other["restored"].keys()
        if one["saved"].get(path) != other["restored"].get(path)
    ]
    batches = [batch for leg in found for batch in leg["batches"]]
    losses = [loss for leg in found for loss in leg["losses"]]
    difference = max(abs(a / b - 1) for a, b in zip(losses, reference["losses"], strict=True))
    for line in changed[:20]:
        print(f"not as it was saved: {line}", flush=True)
    result = {
        "fingerprints_equal": not changed,
        "batches_equal": batches == reference["batches"],
        "loss_difference": float(f"{difference:.2e}"),
        "steps": len(losses),
        "leaves": len(found[0]["saved"]),
    }
    measuring.print_result(result)
    good = result["fingerprints_equal"] and result["batches_equal"] and len(losses) == STEPS
    return 0 if good and difference <= BAR else 1


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
