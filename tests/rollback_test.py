"""A run that meets a bad record goes back, leaves its batch out, and depends on nothing else."""

import json
import os

import jax
import numpy as np
import pytest

from nrdm_jax import config as configuration
from nrdm_jax import records, rollbacks, training_run
from nrdm_jax.checkpointing.stored import StoredCheckpoints
from nrdm_jax.data import order
from nrdm_jax.data.loader import Loader
from nrdm_jax.processes import lifecycle
from nrdm_jax.processes.exit_codes import NON_FINITE, Stop
from nrdm_jax.training.metrics import read_metrics
from nrdm_jax.training.state import save_items

BATCH, BAD_STEP, SAVED = 16, 11, 5
LEFT_OUT = [(BAD_STEP - 1) * BATCH, BAD_STEP * BATCH]  # of the order; step 10 was saved


class Floats:
    """The synthetic records as float numbers, one of them spoilt."""

    def __init__(self, records, spoilt, value):
        self._records, self._spoilt, self._value = records, spoilt, value
        self.dtype = np.dtype(np.float32)

    def __getattr__(self, name):
        return getattr(self._records, name)

    def __len__(self):
        return len(self._records)

    def gather(self, indices):
        batch = self._records.gather(indices)
        x = batch["x"].astype(np.float32) / 127.5 - 1
        x[np.asarray(indices) == self._spoilt] *= self._value
        return batch | {"x": x}


class Killed(BaseException):
    pass


class Signals(lifecycle.Signals):
    """Ends a run after so many steps, undone ones included: as kill -9 would, or as SIGTERM."""

    def __init__(self, steps=None, *, kill=False):
        super().__init__()
        self._left, self._kill = steps, kill

    def stop_requested(self):
        if self._left == 0:
            if self._kill:
                raise Killed
            self.received = "SIGTERM"
        elif self._left is not None:
            self._left -= 1
        return self.received is not None


@pytest.fixture
def config(tiny_config):
    c = tiny_config
    c.model.depth, c.model.width, c.train.steps = 1, 16, 15
    c.checkpoint.every, c.evaluate.every, c.log.every, c.log.sensitivity_every = SAVED, 0, 4, 4
    c.train.ema_widths, c.train.ema_snapshots = (0.1,), 3
    c.guard.action, c.guard.most_in_a_row = "rollback", 1
    configuration.validate(c)
    return c


@pytest.fixture
def spoil(monkeypatch):
    def spoil(value, number=BAD_STEP * BATCH - 3):
        plain = records.training_sources

        def sources(config, *args):
            found = plain(config, *args)
            (shape,) = found
            (index,) = order.indices_of(np.asarray([number]), len(found[shape]), config.seed)
            return {shape: Floats(found[shape], index, value)}

        monkeypatch.setattr(records, "training_sources", sources)

    return spoil


def train(config, workdir, signals=None):
    return training_run.train(config, str(workdir), signals=signals or Signals())


def ended(config, workdir):
    """The items of the last checkpoint, and its meta without its times."""
    checkpoints = StoredCheckpoints(str(workdir / "checkpoints"))
    try:
        step = checkpoints.latest_step()
        state = training_run.build.run(config).abstract_state
        meta = checkpoints.meta(step)
        return checkpoints.restore(step, save_items(state)), {
            name: value for name, value in meta.items() if "seconds" not in name
        }
    finally:
        checkpoints.close()


def same(a, b):
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        np.testing.assert_array_equal(x, y)


def losses(workdir):
    return [(row["step"], row["loss"]) for row in read_metrics(workdir) if "loss" in row]


@pytest.fixture
def without(monkeypatch):
    """A run whose order does not have what is left out."""

    def leave_out():
        first, end = LEFT_OUT
        whole = Loader.batch_at
        monkeypatch.setattr(
            Loader, "batch_at", lambda self, n: whole(self, n if n < first else n + end - first)
        )

    return leave_out


def check_rollback(config, tmp_path, without, ends):
    workdir = tmp_path / "whole"
    train(config, workdir)
    state, meta = ended(config, workdir)
    assert (meta["step"], meta["records_seen"]) == (15, 15 * BATCH)
    assert (meta["position"], meta["left_out"]) == (16 * BATCH, [LEFT_OUT])
    assert meta["guard"]["rollbacks"] == 1
    rows = losses(workdir)
    assert [step for step, _ in rows] == [4, 8, 12, 15]
    assert np.isfinite([loss for _, loss in rows]).all()
    for name, signals in ends.items():
        with pytest.raises((Killed, Stop)):
            train(config, tmp_path / name, signals)
        train(config, tmp_path / name)
        again, told = ended(config, tmp_path / name)
        same(again, state)
        assert told == meta
        assert losses(tmp_path / name)[-1] == rows[-1]
    without()
    train(config, tmp_path / "without")
    other, plain = ended(config, tmp_path / "without")
    same(other, state)
    assert plain["left_out"] == [] and plain["guard"]["rollbacks"] == 0
    return json.loads((workdir / "goodput.json").read_text())


@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_that_goes_back_is_the_run_without_the_batch(
    config, tmp_path, spoil, without, killed
):
    spoil(np.nan)
    # After the rollback, before anything was saved: it comes to it again.
    ends = {"killed": Signals(13, kill=True)} if killed else {}
    told = check_rollback(config, tmp_path, without, ends)
    assert told["seconds"]["lost"] > 0 and 0 < told["goodput"] < 1


@pytest.mark.slow
def test_a_spike_is_left_out_whenever_the_run_is_stopped(config, tmp_path, spoil, without):
    spoil(1e4)
    config.guard.spike_factor, config.guard.spike_window = 10.0, 8
    # Before it is known, and after; at a step that is no other checkpoint's, and at the spike.
    ends = {f"killed_{n}": Signals(n, kill=True) for n in (11, 15)}
    ends |= {f"stopped_{n}": Signals(n) for n in (7, 11)}
    check_rollback(config, tmp_path, without, ends)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_gone_behind(config, tmp_path, spoil, monkeypatch):
    """The one that a run would go back to has changed on the disk since it was saved."""
    spoil(np.nan)
    gone_back = rollbacks.gone_back

    def damaged(parts, batches, checkpoints, *others):
        checkpoints.settle()  # it may still be written
        for file in (tmp_path / "w/checkpoints/10/params").rglob("*"):
            if file.is_file():
                os.truncate(file, file.stat().st_size // 2)
        return gone_back(parts, batches, checkpoints, *others)

    monkeypatch.setattr(rollbacks, "gone_back", damaged)
    train(config, tmp_path / "w")
    _, meta = ended(config, tmp_path / "w")
    assert meta["left_out"] == [[5 * BATCH, BAD_STEP * BATCH]] and meta["step"] == 15
    assert (tmp_path / "w/checkpoints_bad/10").is_dir()


@pytest.mark.slow
def test_too_many_rollbacks_end_the_run(config, tmp_path, spoil):
    spoil(np.nan)
    config.guard.most_rollbacks = 0
    with pytest.raises(Stop, match="after 0 rollbacks; last good checkpoint: step 10") as stopped:
        train(config, tmp_path / "w")
    assert stopped.value.exit_code == NON_FINITE
    # A single skipped update is borne where the limit says so, and counted.
    config.guard.most_in_a_row = 2
    train(config, tmp_path / "borne")
    state, meta = ended(config, tmp_path / "borne")
    assert meta["guard"]["skipped"] == 1 and meta["left_out"] == []
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state["params"]))
    # Before the first checkpoint there is nothing to go back to.
    config.guard.most_in_a_row, config.guard.most_rollbacks = 1, 3
    spoil(np.nan, number=2 * BATCH)
    with pytest.raises(Stop, match="step 3: .*no checkpoint from before it"):
        train(config, tmp_path / "early")
