"""Whether damage to a checkpoint is ever trained on: bits flipped, files cut and deleted.

  python -m benchmarks.corruption --cases=300

Three steps of a small run are saved, by one process with four devices and by two with two each. In
each case one file of the newest step (one case in ten: one of that kind in each step) is damaged,
every kind of file in its turn, and the checkpoints are opened, verified and restored as a run does.
What comes back is compared with what was saved by the SHA-256 of its bytes, not by the
fingerprints.

  harmless         the newest step came back, bit for bit
  fell_back        an older one did, and the newest was set aside
  refused          none is whole, of those cases where each was damaged: exit code 65
  stuck            none came back where older ones are whole: no restart would go on
  silently_wrong   other bits came back, or a run would have begun anew
  crashed_without_message   anything else, an abort and a wait without end included
  split_brain      two processes did not end alike

Exits 1 unless the last four are 0, and some cases fell back.
"""

import collections
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

from absl import flags

from benchmarks import jobs, measuring
from nrdm_jax.processes import lifecycle

STEPS = (1, 2, 3)
LAYOUTS = ((1, 4), (2, 2))  # processes, devices of each
PAIRED = 3  # every so manyth case is of two processes
PATIENCE = 600  # seconds without a line, after which a process is taken to hang
DAMAGES = ("flip", "cut", "delete")


def define_flags() -> None:
    flags.DEFINE_integer("cases", 300, "of damage, over both layouts", lower_bound=6)
    flags.DEFINE_integer("seed", 0, "of what is damaged, and where")
    flags.DEFINE_string("worker", None, "directory of the cases: started by the benchmark itself")
    flags.DEFINE_integer("first", 0, "case of a worker")
    jobs.define_flags()


# In a worker.


def state_and_digest(parts, step: int):
    """A state that is different at each step, and the SHA-256 of what this process holds of it."""
    import jax
    import jax.numpy as jnp

    from nrdm_jax.training.state import save_items

    state = parts.fresh_state()
    moved = jax.tree.map(
        lambda x: x + jnp.asarray(step, x.dtype) / 8
        if jnp.issubdtype(x.dtype, jnp.floating) else x,
        state,
    )  # fmt: skip
    items = save_items(moved.replace(step=state.step + step))
    return items, digest(items)


def digest(items) -> str:
    import hashlib

    import numpy as np

    from nrdm_jax import trees

    total = hashlib.sha256()
    for path, leaf in trees.leaves_with_path(items):
        total.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
        for shard in sorted(leaf.addressable_shards, key=lambda shard: shard.device.id):
            total.update(np.ascontiguousarray(shard.data).tobytes())
    return total.hexdigest()


def work(home: pathlib.Path, first: int) -> None:
    """Does the cases of home/cases.json from the first on; a line of JSON for each, in a file of
    this process: what is said of a checkpoint may come in the middle of another line."""
    import jax

    from nrdm_jax import build
    from nrdm_jax import config as configuration
    from nrdm_jax.checkpointing.manager import Checkpoints
    from nrdm_jax.processes import distributed
    from nrdm_jax.training.state import save_items

    f = flags.FLAGS
    if f.coordinator:
        distributed.start(f.coordinator, f.num_processes, f.process_id)
    config = configuration.of_file("configs/any.py", "openmoji32", "smoke")
    config.model.depth, config.mesh.data, config.mesh.fsdp = 1, 1, 4
    parts = build.run(config)
    made = {step: state_and_digest(parts, step) for step in STEPS}
    whole = home / "whole" / "checkpoints"
    if not (home / "saved").exists():
        checkpoints = Checkpoints(str(whole), keep=None, together=distributed)
        for step, (items, _) in made.items():
            checkpoints.save(step, items, {"records_seen": step})
        checkpoints.wait()
        checkpoints.close()
        distributed.meet("saved")
        if distributed.is_writer():
            (home / "saved").touch()
        return
    expected = {step: found for step, (_, found) in made.items()}
    wanted = save_items(parts.abstract_state)
    for number, case in enumerate(json.loads((home / "cases.json").read_text())):
        if number < first:
            continue
        place = home / "case" / "checkpoints"
        if distributed.is_writer():
            shutil.rmtree(place.parent, ignore_errors=True)
            shutil.copytree(whole, place)
            for step, file in case["files"].items():
                damage(place / step / file, case["kind"], case["at"])
        distributed.meet(f"damaged_{number}")
        outcome = come_back(place, wanted, expected)
        with (home / f"{distributed.index()}.jsonl").open("a") as file:
            file.write(json.dumps({"number": number, **outcome}) + "\n")
        distributed.meet(f"done_{number}")
    jax.effects_barrier()


def come_back(place: pathlib.Path, wanted, expected: dict[int, str]) -> dict:
    from nrdm_jax import restoring
    from nrdm_jax.checkpointing.errors import DamagedCheckpoint
    from nrdm_jax.checkpointing.manager import Checkpoints
    from nrdm_jax.processes import distributed

    checkpoints = None
    try:
        checkpoints = Checkpoints(str(place), keep=None, together=distributed)
        step = restoring.newest_good(checkpoints)
        if step is None:
            return {"end": "silently_wrong", "why": "no step was seen"}
        same = digest(checkpoints.restore(step, wanted)) == expected[step]
        end = "harmless" if step == STEPS[-1] else "fell_back"
        return {"end": end if same else "silently_wrong", "step": step}
    except DamagedCheckpoint as error:
        return {"end": "refused", "why": str(error)[:300]}
    except Exception as error:
        return {"end": "crashed_without_message", "why": f"{type(error).__name__}: {error}"[:300]}
    finally:
        if checkpoints is not None:
            checkpoints.close()


def damage(file: pathlib.Path, kind: str, at: float) -> None:
    """At a place between 0 and 1 of a file, which may have gone."""
    if not file.exists():
        return
    size = file.stat().st_size
    if kind == "delete":
        file.unlink()
    elif kind == "cut":
        os.truncate(file, int(at * size))
    elif size:
        content = bytearray(file.read_bytes())
        bit = int(at * 8 * size)
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)


# In the benchmark.


def start(home: pathlib.Path, processes: int, devices: int, first: int) -> list[subprocess.Popen]:
    command = [sys.executable, "-m", "benchmarks.corruption", f"--worker={home}",
               f"--first={first}"]  # fmt: skip
    commands = [[*command, *each] for each in jobs.meeting(processes)]
    logs = [home / f"{i}.log" for i in range(processes)]
    return jobs.start(commands, logs, jobs.variables(devices), mode="a")


def until_end(home: pathlib.Path, started: list[subprocess.Popen]) -> None:
    """Waits for workers; stops them where one has failed, or none has done anything for long."""
    size, waited = -1, 0
    while any(process.poll() is None for process in started):
        failed = any(process.poll() not in (None, 0) for process in started)
        now = sum(
            file.stat().st_size for kind in ("log", "jsonl") for file in home.glob(f"*.{kind}")
        )
        waited = 0 if now != size and not failed else waited + 1
        size = now
        if waited > (10 if failed else PATIENCE):
            for process in started:
                process.kill()
        for process in started:
            try:
                process.wait(1)
                break
            except subprocess.TimeoutExpired:
                pass


def outcomes(home: pathlib.Path, process: int) -> dict[int, dict]:
    file = home / f"{process}.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return {row["number"]: row for row in map(json.loads, lines)}


def cases_of(home: pathlib.Path, count: int, draw: random.Random) -> list[dict]:
    """So many, over every file of a step, by kinds of files in turn."""
    steps = {step: files_of(home / "whole" / "checkpoints" / str(step)) for step in STEPS}
    names = sorted(steps[STEPS[-1]])
    cases = []
    for i in range(count):
        name = names[i % len(names)]
        every = draw.random() < 0.1
        cases.append({
            "files": {str(step): draw.choice(steps[step][name])
                      for step in (STEPS if every else STEPS[-1:])},
            "kind": DAMAGES[i // len(names) % len(DAMAGES)],
            "at": draw.random(),
        })  # fmt: skip
    return cases


def files_of(step: pathlib.Path) -> dict[str, list[str]]:
    """Of each kind of file; those of values have names that say nothing."""
    kinds = collections.defaultdict(list)
    for file in sorted(path for path in step.rglob("*") if path.is_file()):
        kind = "values" if file.parent.name == "d" else file.name
        kinds[kind].append(str(file.relative_to(step)))
    return kinds


def measure(home: pathlib.Path, processes: int, devices: int, count: int) -> collections.Counter:
    """How so many cases end."""
    home.mkdir()
    until_end(home, start(home, processes, devices, 0))
    if not (home / "saved").exists():
        raise RuntimeError(f"nothing was saved:\n{(home / '0.log').read_text()[-2000:]}")
    cases = cases_of(home, count, random.Random(flags.FLAGS.seed + processes))
    (home / "cases.json").write_text(json.dumps(cases))
    ends: collections.Counter = collections.Counter()
    number = 0
    while number < count:
        until_end(home, start(home, processes, devices, number))
        found = [outcomes(home, i) for i in range(processes)]
        while number < count and all(number in rows for rows in found):
            several = [{name: rows[number].get(name) for name in ("end", "step")}
                       for rows in found]  # fmt: skip
            end = several[0]["end"] if several.count(several[0]) == processes else "split_brain"
            if end == "refused" and len(cases[number]["files"]) == 1:
                end = "stuck"
            _count(ends, end, cases[number], [rows[number] for rows in found])
            number += 1
        if number < count:
            why = (home / "0.log").read_text(errors="replace")[-300:]
            _count(ends, "crashed_without_message", cases[number], [{"why": why}])
            number += 1
    return ends


def _count(ends: collections.Counter, end: str, case: dict, rows: list[dict]) -> None:
    ends[end] += 1
    if end not in ("harmless", "fell_back", "refused"):
        print(f"{end}: {case} {rows}", flush=True)


def run() -> int:
    f = flags.FLAGS
    if f.worker:
        work(pathlib.Path(f.worker), f.first)
        return 0
    ends: collections.Counter = collections.Counter()
    with tempfile.TemporaryDirectory() as directory:
        for processes, devices in LAYOUTS:
            count = f.cases // PAIRED if processes > 1 else f.cases - f.cases // PAIRED
            found = measure(pathlib.Path(directory) / str(processes), processes, devices, count)
            print(f"{processes} x {devices} devices: {dict(found)}", flush=True)
            ends += found
    bad = ("silently_wrong", "crashed_without_message", "split_brain", "stuck")
    measuring.print_result(
        {name: ends[name] for name in (*bad, "harmless", "fell_back", "refused")}
        | {"cases": f.cases}
    )
    return 1 if any(ends[name] for name in bad) or not ends["fell_back"] else 0


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
