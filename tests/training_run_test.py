"""What a run begins with."""

import errno
import json
import os

import jax
import numpy as np
import pytest

from nrdm_jax import build, run_weights, training_run
from nrdm_jax import config as configuration
from nrdm_jax.checkpointing.manager import Checkpoints
from nrdm_jax.processes import lifecycle
from nrdm_jax.processes.exit_codes import PREEMPTED, Stop
from nrdm_jax.sampling import writers
from nrdm_jax.training import charts
from nrdm_jax.training.events import Events
from nrdm_jax.training.metrics import MetricsWriter, read_metrics
from nrdm_jax.training.state import save_items


@pytest.fixture
def before(tiny_config, tmp_path):
    """(config) -> workdir of a run of one checkpoint, and its EMA."""

    def made(name, **diffusion):
        config = tiny_config.copy_and_resolve_references()
        config.diffusion.update(diffusion)
        state = build.run(config).fresh_state()
        ema = jax.tree.map(lambda x: x + 7, state.ema)
        workdir = tmp_path / name
        checkpoints = Checkpoints(str(workdir / "checkpoints"))
        checkpoints.save(3, save_items(state.replace(ema=ema)), {"data": "f"})
        checkpoints.wait()
        checkpoints.close()
        (workdir / "config.json").write_text(json.dumps(configuration.to_dict(config)))
        return str(workdir), ema

    return made


def begun(config, workdir, **fields):
    config = config.copy_and_resolve_references()
    config.checkpoint.init_from = workdir
    for name, value in fields.items():
        group, field = name.split("__")
        config[group][field] = value
    parts = build.run(config)
    return parts, parts.begun_with(training_run._first_weights(parts, workdir))


def assert_equal(a, b):
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        np.testing.assert_array_equal(x, y)


def test_every_average_begins_with_the_weights_that_are_given(tiny_config, before):
    workdir, ema = before("a")
    parts, state = begun(tiny_config, workdir, train__ema_widths=(0.1, 0.2))
    for tree in (state.params, state.ema, *state.averages.values()):
        assert_equal(tree, ema)
    shardings = jax.tree.map(lambda x: x.sharding, parts.abstract_state)
    assert jax.tree.map(lambda x: x.sharding, state) == shardings
    # The iterates of this one are in its state: they would bring back the weights of before.
    _, state = begun(tiny_config, workdir, optim__name="schedule_free",
                     optim__schedule="constant")  # fmt: skip
    iterates = [x for path, x in jax.tree_util.tree_leaves_with_path(state.opt)
                if ".z['" in jax.tree_util.keystr(path)]  # fmt: skip
    assert len(iterates) == len(jax.tree.leaves(ema))
    assert_equal(iterates, ema)


def test_the_head_of_the_uncertainty_is_no_reason_to_refuse(tiny_config, before):
    plain, ema = before("plain")
    with_head, theirs = before("head", uncertainty=True)
    _, state = begun(tiny_config, plain, diffusion__uncertainty=True)
    head = state.params["uncertainty"]
    assert_equal({**ema, "uncertainty": head}, state.params)
    _, state = begun(tiny_config, with_head)
    assert "uncertainty" not in state.params
    assert_equal(state.params, {k: v for k, v in theirs.items() if k != "uncertainty"})


class Stopped(lifecycle.Signals):
    """Told to stop before the first step."""

    def stop_requested(self):
        self.received = "SIGTERM"
        return True


def test_stops_before_the_first_step_are_all_alike(tiny_config, tmp_path):
    for _ in range(2):
        with pytest.raises(Stop, match="saved step 0 of 20") as stopped:
            training_run.train(tiny_config, str(tmp_path), signals=Stopped())
        assert stopped.value.exit_code == PREEMPTED


def test_losses_that_are_owed_are_those_of_their_step(tiny_config, tmp_path):
    """Of a run whose last evaluation was cut short, and that has nothing else to do."""
    c = tiny_config
    c.train.steps, c.evaluate.every, c.log.sensitivity_every = 2, 0, 0
    training_run.train(c, str(tmp_path), signals=lifecycle.Signals())
    c.evaluate.every, c.evaluate.examples = 1, 16
    found = training_run.train(
        c, str(tmp_path), signals=lifecycle.Signals(), allow_config_change=True
    )
    assert found["steps"] == 2
    rows = [row["step"] for row in read_metrics(tmp_path) if "heldout_loss" in row]
    assert rows == [2]


def test_a_disk_that_takes_no_figures_ends_no_run(tiny_config, tmp_path, monkeypatch, capsys):
    """Until its last step, whose figures are owed: the same command makes them."""
    c, home = tiny_config, tmp_path / "run"
    c.train.steps, c.checkpoint.every, c.evaluate.every, c.evaluate.examples = 2, 1, 2, 8
    c.log.every, c.log.sensitivity_every, c.sample.every = 1, 1, 1
    c.sample.steps, c.sample.examples = 1, 8

    def refused(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(MetricsWriter, "_append", refused)
        full.setattr(Events, "write", refused)
        full.setattr(Events, "close", refused)
        full.setattr(charts, "_save", refused)
        full.setattr(writers, "write_samples", refused)
        with pytest.raises(OSError, match="figures of step 2 could not be written"):
            training_run.train(c, str(home), signals=lifecycle.Signals())
    warned = capsys.readouterr().err
    for what in (
        "step 1 is not in",
        "TensorBoard's events",
        "png is not drawn",
        "step_1 is not wh",
    ):
        assert what in warned, what
    assert (home / "checkpoints" / "2").is_dir() and not (home / "metrics.jsonl").exists()
    training_run.train(c, str(home), signals=lifecycle.Signals())
    (told,) = [row for row in read_metrics(home) if "heldout_loss" in row]
    assert told["step"] == 2
    assert training_run.train(c, str(home), signals=lifecycle.Signals())["finished_before"]


def test_several_processes_read_the_step_that_the_writer_sees(before, monkeypatch):
    workdir, _ = before("a")
    assert run_weights.steps_of(workdir, run_weights.CHECKPOINTS) == [3]
    monkeypatch.setattr(run_weights.distributed, "told", lambda mine: [[1, 2], mine])
    assert run_weights.find(workdir).step == 2
