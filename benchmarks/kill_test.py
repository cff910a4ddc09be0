"""SIGKILL at random moments, in steps, saves, evaluations and starts: whether what a run ends with
is what one that was never killed does, bit for bit, and which records it was trained on.

  python -m benchmarks.kill_test --kills=30

Half of the kills befall runs of one process, half runs of two, of which one is killed or both; one
that is left has to end by itself, with exit code 71. The same command goes on until the run is
finished; then another begins, until there were so many kills. Two in five wait for a step that is
half written.

  bitwise          each run ends in the state of one of its layout that was never killed
  records_lost, records_repeated
                   of what the last execution of each step was trained on, beside that run, which
                   reads each record once an epoch
  kills_in_save    kills while a checkpoint was half written
  most_steps_lost  from the last step that was begun back to the one that was gone on from; of a
                   kill in a save, from the one that was being written: the steps beside it are
                   not waited for, and are in most_steps_done_again

Exits 1 unless states, batches and losses are equal, nothing is lost or repeated, each restart goes
on from the newest step that was committed, no kill loses more steps than checkpoint.every, and 8
of 30 kills were in saves.
"""

import collections
import os
import pathlib
import random
import tempfile

from absl import flags

from benchmarks import jobs, measuring, resume
from benchmarks.killed_runs import BATCH, LAYOUTS, SAVE_EVERY, STEPS, Kill, Run
from nrdm_jax.processes import exit_codes, lifecycle
from nrdm_jax.training.metrics import read_metrics

RECORDS = 512  # of the data: batches span the ends of epochs
SHARES = {"save": 0.4, "step": 0.3, "evaluate": 0.2, "start": 0.1}  # of the kills


def define_flags() -> None:
    flags.DEFINE_string("config", "configs/openmoji32.py:smoke", "of the runs")
    flags.DEFINE_integer("kills", 30, "over both layouts", lower_bound=2)
    flags.DEFINE_integer("seed", 0, "of the moments and the processes")


def batches(run: Run) -> dict[int, list[tuple[int, list[int], int]]]:
    """Step -> (first row, indices of records, CRC-32) of the parts of the batch that the last
    execution of the step was given."""
    found: dict[int, list] = {}
    for attempt in range(1, run.attempts + 1):
        of_attempt: dict[int, list] = {}
        for line in run.told(attempt, "step"):
            parts = [(int(first), rows, line["crc"][first]) for first, rows in line["rows"].items()]
            of_attempt.setdefault(line["step"], []).extend(parts)
        found |= of_attempt
    return {step: sorted(parts) for step, parts in found.items()}


def epochs(steps: dict[int, list]) -> list[collections.Counter]:
    """How often each record is read in each epoch."""
    order = [index for step in range(1, STEPS + 1) for _, rows, _ in steps.get(step, ())
             for index in rows]  # fmt: skip
    return [
        collections.Counter(order[at : at + RECORDS]) for at in range(0, STEPS * BATCH, RECORDS)
    ]


def losses(run: Run) -> list[tuple]:
    """Of steps, and held-out ones."""
    names = ("loss", "heldout_loss")
    rows = read_metrics(run.workdir)
    return [(row["step"], name, row[name]) for row in rows for name in names if name in row]


def never_killed(run: Run) -> tuple[str, int]:
    """The digest of a run, which has not begun yet.

    Raises:
      RuntimeError: it fails, or does not read each record once an epoch.
    """
    run.finish()
    *full, last = epochs(batches(run))
    if any(set(epoch.values()) != {1} for epoch in [*full, last]) or any(
        len(epoch) != RECORDS for epoch in full
    ):
        raise RuntimeError("a run that was never killed has not read each record once an epoch")
    return resume.digest(run.workdir)


def apart(run: Run, wanted: Run, digest: tuple[str, int]) -> collections.Counter:
    """What a finished run has otherwise than one that was never killed."""
    mine, other = batches(run), batches(wanted)
    found: collections.Counter = collections.Counter()
    for a, b in zip(epochs(mine), epochs(other), strict=True):
        found["records_lost"] += (b - a).total()
        found["records_repeated"] += (a - b).total()
    found["batches"] = sum(mine.get(step) != other[step] for step in other)
    found["losses"] = int(losses(run) != losses(wanted))
    found["states"] = int(resume.digest(run.workdir) != digest)
    for kill in run.kills:
        for line in run.told(kill.attempt + 1, "restored"):
            found["restored"] += line["restored"] != kill.committed
    return found


def measure(
    home: pathlib.Path, processes: int, moments: list[str], draw: random.Random
) -> tuple[collections.Counter, list[Kill]]:
    """What is otherwise in runs of so many processes that are killed at these moments."""
    config, cache = flags.FLAGS.config, home / "cache"
    wanted = Run(home / f"whole_{processes}", config, processes, cache)
    digest = never_killed(wanted)
    print(f"{processes} processes, never killed: sha256 {digest[0]}", flush=True)
    total: collections.Counter = collections.Counter()
    kills: list[Kill] = []
    while len(kills) < len(moments):
        run = Run(home / f"killed_{processes}_{total['runs']}", config, processes, cache)
        while len(kills) < len(moments):
            found = run.kill(moments[len(kills)], draw)
            if found is None:
                break
            print(f"{processes} processes, in {moments[len(kills)]}: {found}", flush=True)
            if any(code != exit_codes.PEER_LOST for code in found.codes):
                print(jobs.said(run.logs()), flush=True)
            kills.append(found)
        if run.kills and run.kills[-1].attempt == run.attempts:
            run.finish()
        otherwise = apart(run, wanted, digest)
        print(f"{processes} processes, {run.attempts} attempts: {dict(otherwise)}", flush=True)
        total += otherwise
        total["runs"] += 1
    return total, kills


def moments_of(count: int, draw: random.Random) -> list[str]:
    """So many, by their shares."""
    found = [kind for kind, share in SHARES.items() for _ in range(int(share * count))]
    found += ["save"] * (count - len(found))
    draw.shuffle(found)
    return found


def run() -> int:
    # The states of two processes are looked at by this one.
    os.environ.update(jobs.variables(max(LAYOUTS)))
    count, draw = flags.FLAGS.kills, random.Random(flags.FLAGS.seed)
    moments = moments_of(count, draw)
    total: collections.Counter = collections.Counter()
    kills: list[Kill] = []
    with tempfile.TemporaryDirectory() as directory:
        for processes, part in ((1, moments[: count // 2]), (2, moments[count // 2 :])):
            otherwise, found = measure(pathlib.Path(directory), processes, part, draw)
            total += otherwise
            kills += found
    codes = [code for kill in kills for code in kill.codes]
    result = {
        "bitwise": not total["states"],
        "records_lost": total["records_lost"],
        "records_repeated": total["records_repeated"],
        "kills_in_save": sum(kill.writing is not None for kill in kills),
        "kills": len(kills),
        "runs": total["runs"],
        "batches_equal": not total["batches"],
        "losses_equal": not total["losses"],
        "newest_restored": not total["restored"],
        "most_steps_lost": max(kill.lost for kill in kills),
        "most_steps_done_again": max(max(kill.begun - kill.committed, 0) for kill in kills),
        "save_every": SAVE_EVERY,
        "survivors": {str(code): codes.count(code) for code in sorted(set(codes))},
        "most_seconds_to_notice": round(max((k.seconds for k in kills if k.codes), default=0.0), 1),
    }
    measuring.print_result(result)
    good = (
        not any(total[name] for name in total if name != "runs")
        and result["most_steps_lost"] <= SAVE_EVERY
        and result["kills_in_save"] >= count * 8 // 30
        and set(codes) <= {exit_codes.PEER_LOST}
    )
    return 0 if good else 1


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
