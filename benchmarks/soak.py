"""A long run to which something happens every few minutes, beside one to which nothing does.

  python -m benchmarks.soak --workdir=runs/soak --minutes=120

Two processes train openmoji32's small form, with checkpoints, evaluations and sample grids, first
undisturbed for a share of the time: the reference. (A small network saves ten times as often in two
hours as a large one: what a save leaves behind, or loses, has ten times the occasions to show.)
Then they train again to the same step, and in legs of a minute or more one of `ENDINGS` comes at a
random moment: killed, told to stop, stopped for good, stuck, killed within a save, killed with a
file of the newest checkpoint then changed. In some legs the disk is full for a save, or a process
is paused, and training goes on.

A leg is right if what was to end it came, its processes left with the codes that this has, and it
began with the newest step, or an older one where that was damaged. Of a full disk and a hang it is
the drill's own line that is counted, of a pause the signal.

`bitwise`: every checkpoint whose step `KEPT` divides has the SHA-256 of the reference's, and so has
the last; `losses_equal`: so do all losses that were written, but those of lines that tell of fewer
steps than the reference's, as a leg began between two: `lines_cut`. `growth`: of the reference's
processes, the slope of their anonymous memory after the first tenth of the time, MiB an hour
(Theil-Sen over medians of two minutes), with its 95 % interval; too much where the lower end is
above `MOST_GROWTH`, and too little is known where the upper end is above `UNSURE`. Exits 1 unless
all hold and every leg was right.

The same command goes on where it was ended: what has happened is in WORKDIR/soak.jsonl, a line
each. A reference that was cut off begins anew.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import statistics
import sys
import time

from absl import flags

from benchmarks import corruption, measuring, preempt, resume
from nrdm_jax.processes import exit_codes, lifecycle
from nrdm_jax.training import drill

REFERENCE = 0.38  # share of the time; the rest takes longer, for what is done again
SAVED, KEPT = 50, 500  # steps between checkpoints, and between those that stay
TOLD = 10  # steps of which a line has the mean loss
LEG = (60.0, 240.0)  # seconds that a leg trains before its end
LOOK = 0.5  # seconds between looks
MEMORY = 15.0  # seconds between samples of memory
SETTLED = 0.1  # share of the reference after which memory is looked at
MOST_GROWTH, UNSURE = 1.0, 16.0  # MiB an hour
PATIENCE = 300.0  # seconds in which all must have left
DAMAGES = ("flip", "cut", "delete")

# What ends a leg -> the exit codes of the process that it befalls, and of the other (negative: by a
# signal).
KILLED, LOST, STOPPED = -signal.SIGKILL, exit_codes.PEER_LOST, exit_codes.PREEMPTED
ENDINGS = {
    "kill": (KILLED, LOST),
    "kill_both": (KILLED, KILLED),
    "kill_in_save": (KILLED, KILLED),
    "damage": (KILLED, KILLED),
    "term": (STOPPED, STOPPED),
    "stop": (KILLED, LOST),
    "hang": (LOST, LOST),
}
# What happens in a leg before its end.
EXTRAS = ("", "enospc", "pause")


def define_flags() -> None:
    flags.DEFINE_string("config", "configs/openmoji32.py:smoke", "of the run")
    flags.DEFINE_string("workdir", "runs/soak", "of the soak")
    flags.DEFINE_float("minutes", 120.0, "in total, about", lower_bound=1.0)
    flags.DEFINE_integer("seed", 0, "of what happens, and when")


def command(workdir: pathlib.Path, fault: str = "") -> list[str]:
    given = [
        sys.executable, "-m", "nrdm_jax.train", f"--config={flags.FLAGS.config}",
        f"--workdir={workdir}", "--config.train.steps=1000000", f"--config.log.every={TOLD}",
        f"--config.checkpoint.every={SAVED}", "--config.checkpoint.keep=3",
        f"--config.checkpoint.keep_every={KEPT}", "--config.evaluate.every=200",
        "--config.sample.every=500", "--config.sample.examples=16",
        # Longer than any step, evaluation or drawing here takes.
        "--config.watchdog.step=60", "--config.watchdog.compile=240",
    ]  # fmt: skip
    return given + ([f"--fault={fault}"] if fault else [])


class Log:
    """WORKDIR/soak.jsonl: what has happened, a line each, read again when the soak goes on."""

    def __init__(self, home: pathlib.Path):
        self._file = home / "soak.jsonl"
        text = self._file.read_text() if self._file.exists() else ""
        self.rows: list[dict] = []
        for line in text.splitlines():
            with contextlib.suppress(ValueError):  # the last, of a soak that was killed
                self.rows.append(json.loads(line))

    def write(self, what: str, **values) -> None:
        row = {"what": what, "time": round(time.time(), 1), **values}
        self.rows.append(row)
        with self._file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if what != "memory":
            print(" ".join(f"{name}={value}" for name, value in row.items()), flush=True)

    def of(self, what: str, **wanted) -> list[dict]:
        return [
            row
            for row in self.rows
            if row["what"] == what and all(row.get(k) == v for k, v in wanted.items())
        ]


@dataclasses.dataclass
class Pair:
    """Two processes of a run.

    Attributes:
      workdir: of the run.
      log: what they say goes to LOG.0 and LOG.1.
      fault: their drill.
    """

    workdir: pathlib.Path
    log: pathlib.Path
    fault: str = ""

    def __post_init__(self):
        cache = self.workdir.parent / "cache"
        self.processes = preempt.start(command(self.workdir, self.fault), self.log, cache)
        self.began = time.monotonic()
        (self.workdir.parent / "pids").write_text(" ".join(str(p.pid) for p in self.processes))

    def step(self) -> int:
        """The last that process 0 has told of."""
        with pathlib.Path(f"{self.log}.0").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4000))
            lines = file.read().decode(errors="replace").splitlines()
        told = [line for line in lines if line.startswith("step=")]
        return int(told[-1].split("=")[1].split("/")[0].split()[0]) if told else 0

    def said(self, process: int) -> str:
        return pathlib.Path(f"{self.log}.{process}").read_text(errors="replace")

    def restored(self) -> int:
        """The step that it began with."""
        return resume.restored(self.said(0))

    def has_ended(self) -> bool:
        return any(process.poll() is not None for process in self.processes)

    def memory(self, log: Log, phase: str) -> None:
        """A line for each process, where it can be read."""
        for i, process in enumerate(self.processes):
            with contextlib.suppress(OSError, IndexError):
                text = pathlib.Path(f"/proc/{process.pid}/status").read_text()
                kib = int(text.split("RssAnon:")[1].split()[0])
                seconds = round(time.monotonic() - self.began, 1)
                log.write("memory", phase=phase, process=i, pid=process.pid, seconds=seconds,
                          mib=round(kib / 1024, 2))  # fmt: skip

    def left(self) -> list[int | str]:
        """The exit codes, once all have left; who does not is `stuck`, and is killed."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and any(p.poll() is None for p in self.processes):
            time.sleep(LOOK)
        codes = [p.poll() if p.poll() is not None else "stuck" for p in self.processes]
        for process in self.processes:
            process.kill()
            process.wait()
        return codes

    def send(self, number: int, *, to: int | None = None) -> None:
        for i, process in enumerate(self.processes):
            if to in (None, i):
                process.send_signal(number)


def committed(workdir: pathlib.Path) -> list[int]:
    names = [p.name for p in (workdir / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdigit())


def partial(workdir: pathlib.Path) -> bool:
    """Whether a checkpoint is being written."""
    return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def undisturbed(home: pathlib.Path, log: Log, seconds: float) -> int:
    """Trains the reference for so long; returns its last step that stays."""
    workdir = home / "reference"
    shutil.rmtree(workdir, ignore_errors=True)
    log.write("reference_begins")
    pair = Pair(workdir, home / "reference.log")
    sampled = 0.0
    while time.monotonic() - pair.began < seconds or not any(
        step % KEPT == 0 for step in committed(workdir)
    ):
        if pair.has_ended():
            raise RuntimeError(f"the reference ended with {pair.left()}; see {pair.log}.0")
        if time.monotonic() - sampled > MEMORY:
            sampled = time.monotonic()
            pair.memory(log, "reference")
        time.sleep(LOOK)
    pair.send(signal.SIGTERM)
    codes = pair.left()
    if codes != [STOPPED] * 2:
        raise RuntimeError(f"the reference was told to stop and left with {codes}")
    last = max(step for step in committed(workdir) if step % KEPT == 0)
    log.write("reference", last=last, seconds=round(time.monotonic() - pair.began, 1))
    return last


def disturbed(home: pathlib.Path, log: Log, last: int, draw: random.Random) -> bool:
    """One leg, unless the last step was saved. Whether there is another."""
    workdir, number = home / "disturbed", len(log.of("leg"))
    ending, extra = draw.choice(list(ENDINGS)), draw.choice(EXTRAS)
    seconds, victim = draw.uniform(*LEG), draw.randrange(2)
    if last in committed(workdir):
        return False
    begun = max(committed(workdir), default=0)
    reference = log.of("reference")[-1]
    later = max(int(seconds * last / reference["seconds"]), 1)  # at the reference's pace
    fault = f"hang@step={begun + later}:rank={victim}" if ending == "hang" else ""
    # A step that stays is to be saved.
    if extra == "enospc" and (begun // SAVED + 1) * SAVED % KEPT:
        fault += "," * bool(fault) + f"enospc@save=1:rank={victim}"
    (workdir / drill.DONE).unlink(missing_ok=True)  # of the leg before: it may happen again
    pair = Pair(workdir, home / f"leg{number}.log", fault)
    pair_trains, sampled, paused = None, 0.0, extra != "pause"
    over = hit_it = was_paused = False
    while not pair.has_ended():
        now = time.monotonic()
        if now - sampled > MEMORY:
            sampled = now
            pair.memory(log, "disturbed")
        if pair_trains is None and pair.step():
            pair_trains = now
        if last in committed(workdir):
            over, ending = True, "term"  # the run is where the reference was
            pair.send(signal.SIGTERM, to=victim)
            hit_it = True
            break
        trained = now - pair_trains if pair_trains is not None else 0.0
        if not paused and trained > seconds / 2:
            paused = was_paused = True
            pair.send(signal.SIGSTOP, to=victim)
            time.sleep(draw.uniform(3, 12))
            pair.send(signal.SIGCONT, to=victim)
        if ending != "hang" and trained > seconds and is_moment(pair, ending):
            hit_it = hit(pair, ending, victim, draw)
            break
        time.sleep(LOOK if ending != "kill_in_save" else 0.005)
    codes = pair.left()
    hit_it = hit_it or (ending == "hang" and "drill: hang" in pair.said(victim))
    happened = {"enospc": "drill: enospc" in pair.said(victim), "pause": was_paused}
    row = {"number": number, "ending": ending, "extra": extra if happened.get(extra) else "",
           "victim": victim, "codes": codes, "hit": hit_it, "from_step": begun,
           "restored": pair.restored(), "seconds": round(time.monotonic() - pair.began, 1),
           }  # fmt: skip
    if ending == "damage":
        row["damaged"] = damaged(workdir, draw)
    log.write("leg", **row, newest=max(committed(workdir), default=0))
    return not over


def is_moment(pair: Pair, ending: str) -> bool:
    return ending != "kill_in_save" or partial(pair.workdir)


def is_right(leg: dict, before: dict | None) -> bool:
    """Whether a leg ended as it was to, and went on from where the one before it had come to."""
    one, other = ENDINGS[leg["ending"]]
    codes = [other, other]
    codes[leg["victim"]] = one
    restored = leg["restored"]
    damaged = before is not None and before.get("damaged", "nothing") != "nothing"
    went_on = restored == leg["from_step"] or (damaged and 0 < restored < leg["from_step"])
    return leg["codes"] == codes and leg["hit"] and went_on


def hit(pair: Pair, ending: str, victim: int, draw: random.Random) -> bool:
    """Ends a leg; whether it was this that did."""
    if ending == "kill_in_save":
        time.sleep(draw.uniform(0, 0.1))
        pair.send(signal.SIGKILL)
    elif ending in ("kill_both", "damage"):
        pair.send(signal.SIGKILL)
    elif ending == "stop":
        pair.send(signal.SIGSTOP, to=victim)
        other = pair.processes[1 - victim]
        deadline = time.monotonic() + PATIENCE
        while other.poll() is None and time.monotonic() < deadline:
            time.sleep(LOOK)
        noticed = other.poll() is not None
        pair.send(signal.SIGKILL, to=victim)
        return noticed
    else:
        pair.send(signal.SIGTERM if ending == "term" else signal.SIGKILL, to=victim)
    return True


def damaged(workdir: pathlib.Path, draw: random.Random) -> str:
    """Changes a file of the newest checkpoint; says which, and how. One is left as it is."""
    steps = committed(workdir)
    if len(steps) < 2:
        return "nothing"
    directory = workdir / "checkpoints" / str(steps[-1])
    file = draw.choice(sorted(path for path in directory.rglob("*") if path.is_file()))
    kind = draw.choice(DAMAGES)
    corruption.damage(file, kind, draw.random())
    return f"{kind} {file.relative_to(workdir)}"


def losses(workdir: pathlib.Path, last: int) -> dict[int, float]:
    from nrdm_jax.training.metrics import read_metrics

    rows = read_metrics(workdir)
    return {row["step"]: row["loss"] for row in rows if "loss" in row and row["step"] <= last}


def growth(log: Log) -> dict[str, list[float]]:
    """Process of the reference -> slope, lower and upper end, MiB an hour, and MiB at the end."""
    from scipy.stats import theilslopes

    found = {}
    begun = log.of("reference_begins")[-1]["time"]
    settled = SETTLED * log.of("reference")[-1]["seconds"]
    rows = [r for r in log.of("memory", phase="reference") if r["time"] >= begun]
    for process in (0, 1):
        medians: dict[int, list[float]] = {}
        for row in rows:
            if row["process"] == process and row["seconds"] > settled:
                medians.setdefault(int(row["seconds"] // 120), []).append(row["mib"])
        if len(medians) < 5:
            continue
        hours = [(number + 0.5) / 30 for number in medians]
        slope, _, low, high = theilslopes([statistics.median(m) for m in medians.values()], hours)
        at_end = medians[max(medians)][-1]
        found[f"process {process}"] = [round(float(x), 3) for x in (slope, low, high, at_end)]
    return found


def end_others(home: pathlib.Path) -> None:
    """Of a soak that was itself killed, the processes may still train."""
    if not (home / "pids").exists():
        return
    for pid in (home / "pids").read_text().split():
        with contextlib.suppress(OSError):
            if str(home).encode() in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(int(pid), signal.SIGKILL)


def run() -> int:
    home = pathlib.Path(flags.FLAGS.workdir).resolve()
    home.mkdir(parents=True, exist_ok=True)
    end_others(home)
    log = Log(home)
    whole = log.of("reference")
    minutes = flags.FLAGS.minutes
    last = whole[-1]["last"] if whole else undisturbed(home, log, 60 * minutes * REFERENCE)
    # Of a soak that goes on, each leg has a draw of its own.
    while disturbed(home, log, last, random.Random(f"{flags.FLAGS.seed} {len(log.of('leg'))}")):
        pass
    kept = range(KEPT, last + 1, KEPT)
    pairs = [
        (resume.digest(home / "reference", step), resume.digest(home / "disturbed", step))
        for step in kept
    ]
    legs = log.of("leg")
    begun = {leg["newest"] for leg in legs}  # by the next leg, that of a soak that was ended too
    cut = {-(-step // TOLD) * TOLD for step in begun if step < last and step % TOLD}
    lines = [losses(home / name, last) for name in ("reference", "disturbed")]
    told = set(lines[0]) == set(lines[1]) and len(lines[0]) > len(cut)
    memory = growth(log)
    seconds = log.of("reference")[-1]["seconds"] + sum(leg["seconds"] for leg in legs)
    result = {
        "bitwise": all(one == other for one, other in pairs),
        "checkpoints": len(pairs),
        "losses_equal": told
        and all(loss == lines[1][step] for step, loss in lines[0].items() if step not in cut),
        "losses": len(lines[0]),
        "lines_cut": len(cut),
        "steps": last,
        "faults": {name: sum(leg["ending"] == name for leg in legs) for name in ENDINGS}
        | {name: sum(leg["extra"] == name for leg in legs) for name in EXTRAS if name},
        "legs_right": all(map(is_right, legs, [None, *legs])),
        "growth": memory,
        "minutes": round(seconds / 60, 1),
    }
    measuring.print_result(result)
    grows = len(memory) < 2 or any(
        low > MOST_GROWTH or high > UNSURE for _, low, high, _ in memory.values()
    )
    good = all(result[name] for name in ("bitwise", "losses_equal", "legs_right"))
    return 0 if good and not grows else 1


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
