"""One training run from its config to its last checkpoint: the parts of `build`, in their order."""

import contextlib
import pathlib
import sys
import time

import jax

from nrdm_jax import (
    __version__,
    build,
    host_memory,
    networks,
    programs,
    records,
    reports,
    restoring,
    rollbacks,
    run_weights,
    trees,
)
from nrdm_jax import config as configuration
from nrdm_jax.checkpointing import fingerprints
from nrdm_jax.checkpointing.manager import Checkpoints
from nrdm_jax.checkpointing.retention import Retention
from nrdm_jax.data.buckets import BucketLoader
from nrdm_jax.data.errors import DataError
from nrdm_jax.data.loader import Loader
from nrdm_jax.processes import distributed, exit_codes, lifecycle
from nrdm_jax.processes.exit_codes import Stop
from nrdm_jax.processes.stored_config import read_whole_config
from nrdm_jax.processes.workdir import Workdir, check_place
from nrdm_jax.signatures import Params
from nrdm_jax.stretch import Job, Stretch, Tools, takes_snapshots
from nrdm_jax.training import guard, recovery
from nrdm_jax.training.goodput import Goodput
from nrdm_jax.training.metrics import Ledger, MetricsWriter, warned_of
from nrdm_jax.training.state import TrainState, save_items, state_of


def _opened(config, signals: lifecycle.Signals) -> Job:
    """Raises as `train`."""
    parts = build.run(config)
    reports.check_watched(parts)
    data_dir = str(lifecycle.data_dir())
    with records.writer_first(config, "data"):
        of_shapes = records.training_sources(config, data_dir, signals.check)
        heldout = records.source(config, "heldout", data_dir)
        train = of_shapes[tuple(config.data.shape)]
        scored = bool(config.evaluate.metrics_every)
        pictures = records.pictures(config, "train", data_dir, train) if scored else train
    batches: Loader | BucketLoader = build.train_loader(config, train, parts.mesh)
    if config.data.buckets:
        batches = build.bucket_loader(config, of_shapes, parts.mesh)
        print(batches.table(), flush=True)
    sampler = parts.task.sampler(parts.mesh)
    to_pixels = records.to_pixels(config, parts.mesh, records.statistics_of(train))
    quality = reports.quality(parts, pictures, heldout, sampler, to_pixels)
    return Job(parts, train, heldout, to_pixels, batches, sampler, quality)


def train(
    config, workdir: str, *, signals: lifecycle.Signals, allow_config_change: bool = False
) -> dict:
    """Trains to `train.steps`, going on from the newest checkpoint in `workdir`.

    Returns a summary: steps, whether the run was finished before, and seconds by what they went to.

    Raises:
      ValueError: the config does not fit devices, data, or the run in `workdir`.
      DataError: the data are absent, too few or damaged.
      Stop: preempted, non-finite, or the workdir cannot be used.
    """
    ledger = Ledger(listener=signals.enter)
    with ledger.account("init"):
        check_place(workdir)
        job = _opened(config, signals)
        if config.checkpoint.init_from:
            run_weights.find(config.checkpoint.init_from)
        home = Workdir(
            workdir,
            configuration.to_dict(config),
            allow_change=allow_config_change,
        )
        host_bytes = int(config.checkpoint.host_gib * 2**30)
        checkpoints = Checkpoints(
            str(home.path / run_weights.CHECKPOINTS),
            keep=Retention(
                config.checkpoint.keep,
                config.checkpoint.keep_every,
                config.checkpoint.keep_best,
                config.checkpoint.best_metric,
            ),
            host_bytes=host_bytes,
            most_failed=config.checkpoint.most_failed,
            together=distributed,
        )
        snapshots = None
        kept = home.path / run_weights.SNAPSHOTS
        if takes_snapshots(config) or kept.is_dir():
            snapshots = Checkpoints(
                str(kept), keep=None, host_bytes=host_bytes, together=distributed
            )
    try:
        return _train(job, home, checkpoints, snapshots, signals, ledger)
    finally:
        signals.enter("exit")
        limit = config.watchdog.exit
        has_failed = sys.exception() is not None
        for steps in (checkpoints, snapshots):
            if steps is not None:
                # What the run ends with is not to be lost for what comes of closing it.
                with warned_of("checkpoints") if has_failed else contextlib.nullcontext():
                    lifecycle.bounded("checkpoints", steps.close, limit)
        home.release()


def _train(job: Job, home: Workdir, checkpoints, snapshots, signals, ledger) -> dict:
    parts, batches, workdir = job.parts, job.batches, home.path
    last_step = parts.config.train.steps
    with ledger.account("restore"):
        state, begun = _start(parts, checkpoints, workdir, batches.fingerprint)
        first_step = int(state.step)
    size = sum(map(fingerprints.bytes_of, jax.tree.leaves(save_items(parts.abstract_state))))
    if first_step < last_step:
        every = parts.config.checkpoint.every
        planned = [s for s in range(every, last_step, every) if s > first_step] + [last_step]
        count = max(checkpoints.at_most(planned), 1)
        what, needed = f"{count} checkpoints of {size:,} bytes", count * size
        if takes_snapshots(parts.config):
            count = parts.config.train.ema_snapshots - len(snapshots.steps())
            of_one = sum(map(fingerprints.bytes_of, jax.tree.leaves(parts.abstract_state.averages)))
            what += f", {count} snapshots of {of_one:,} bytes"
            needed += count * of_one
        home.require_space(needed, what)
    home.record(environment(parts, batches.fingerprint))
    records.keep_statistics(job.records, workdir)
    owed = reports.owed(parts, workdir, first_step, batches.records_a_step)
    if first_step >= last_step and not (owed or reports.losses_owed(parts, workdir, first_step)):
        print(f"run in {workdir} is finished: step {first_step} of {last_step}", flush=True)
        return {"steps": first_step, "finished_before": True, "workdir": str(workdir)}

    with ledger.account("compile"):
        train_step = _compiled(parts, batches.dtype)
        # The first collective waits half a minute for the others, whose compiling may take longer.
        distributed.meet("compiled")

    goodput = Goodput(workdir, ledger, begun.get("step_seconds"))
    tools = Tools(workdir, checkpoints, snapshots, signals, ledger, goodput, train_step)
    step = None
    try:
        with host_memory.settled():
            while step is None:
                try:
                    step = Stretch(job, tools, int(state.step), begun).run(state)
                except guard.Broken as error:
                    trouble = error.trouble  # and not the error, whose frames hold a state
                if step is None:
                    state, begun = rollbacks.gone_back(
                        parts, batches, checkpoints, ledger, begun, trouble
                    )
    finally:
        goodput.write()
        with contextlib.suppress(OSError):  # a log on a disk that is full
            print(goodput.in_words(), flush=True)
    if (
        step < last_step
        or reports.owed(parts, workdir, step, batches.records_a_step)
        or reports.losses_owed(parts, workdir, step)
    ):
        if signals.received is None:
            raise OSError(
                f"figures of step {step} could not be written in {workdir}; make room there: the "
                "same command makes them, the step is saved"
            )
        raise Stop(
            exit_codes.PREEMPTED,
            f"{signals.received}: saved step {step} of {last_step}; the same command goes on",
        )
    return {
        "steps": step,
        "finished_before": False,
        "workdir": str(workdir),
        "train_seconds": round(ledger.elapsed(), 1),
        "goodput": round(goodput.share(), 4),
    }


def _compiled(parts: build.Run, dtype) -> programs.Steps:
    """The train step of each shape; says what was compiled."""
    config = parts.config
    before = time.monotonic()
    train_step = programs.Steps(parts, dtype)
    print(parts.task.in_words, flush=True)
    print(f"train step compiled in {time.monotonic() - before:.1f} s", flush=True)
    if config.optim.sensitivity_penalty:
        size = configuration.batch_size(config, config.data.shape)
        print(
            f"sensitivity penalty on {config.optim.sensitivity_examples} of {size} examples: "
            f"{programs.penalty_cost(parts):.2f} times the "
            "FLOPs of a step without it",
            flush=True,
        )
    return train_step


def _start(
    parts: build.Run, checkpoints: Checkpoints, workdir: pathlib.Path, data: str
) -> tuple[TrainState, dict]:
    """The state to go on with, and what its checkpoint says of the run so far (`Stretch.meta`);
    `data` is the fingerprint of the records."""
    config = parts.config
    latest = restoring.newest_good(checkpoints)
    if latest is not None:
        meta = checkpoints.meta(latest)
        wanted = save_items(parts.abstract_state)
        # What another shape or number of classes changes is said before that the data are others.
        state = state_of(checkpoints.restore(latest, wanted))
        if meta["data"] != data:
            raise DataError(
                f"the checkpoint was trained on data {meta['data']}, and data.name="
                f"{config.data.name} is now {data}; use another workdir"
            )
        meta = recovery.whole(meta)
        print(f"restored step {latest}, {meta['records_seen']} records seen", flush=True)
        if note := configuration.other_batch_size(config, meta):
            print(note, file=sys.stderr, flush=True)
        return state, meta
    restoring.check_none_lost(workdir, config.checkpoint.every)
    nothing_yet = recovery.nothing_yet() | {
        "step": 0,
        **dict.fromkeys(MetricsWriter.SECONDS, 0.0),
    }
    if not config.checkpoint.init_from:
        return parts.fresh_state(), nothing_yet
    state = parts.begun_with(_first_weights(parts, config.checkpoint.init_from))
    print(f"started from the weights of {config.checkpoint.init_from}", flush=True)
    return state, nothing_yet


def _first_weights(parts: build.Run, workdir: str) -> Params:
    """The EMA of another run; the head of the uncertainty, which no sample sees, is taken from
    there only if both have it."""
    wanted, head = dict(parts.abstract_state.params), networks.UNCERTAINTY
    theirs = read_whole_config(pathlib.Path(workdir))["diffusion"]["uncertainty"]
    if theirs == (head in wanted):
        return run_weights.find(workdir).read(wanted)
    own = wanted.pop(head, None)
    weights = run_weights.find(workdir).read(wanted, partial=theirs)
    return weights if own is None else {**weights, head: parts.fresh_state().params[head]}


def environment(parts: build.Run, data: str) -> dict:
    """What a workdir says of the programs and devices that wrote it, and the fingerprint of its
    data."""
    return {
        "nrdm_jax": __version__,
        "jax": jax.__version__,
        "python": sys.version.split()[0],
        "devices": f"{parts.mesh.size} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "mesh": dict(parts.mesh.shape),
        "parameters": trees.count(parts.abstract_state.params),
        "data": data,
        "command": sys.argv,
    }
