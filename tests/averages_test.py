"""Power-function averages of a run: tracked, kept as snapshots, and others made from those."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from nrdm_jax import build, post_hoc, run_weights, scoring, training_run
from nrdm_jax import config as configuration
from nrdm_jax.checkpointing.manager import Checkpoints
from nrdm_jax.checkpointing.stored import StoredCheckpoints
from nrdm_jax.processes import lifecycle
from nrdm_jax.processes.exit_codes import Stop

STEPS, SNAPSHOTS = 24, 4
WIDTHS = (0.1, 0.15, 0.25)


class StopAt(lifecycle.Signals):
    """A SIGTERM that comes after so many steps of a fresh run."""

    def __init__(self, step):
        super().__init__()
        self._left = step + 1

    def stop_requested(self):
        self._left -= 1
        self.received = None if self._left else "SIGTERM"
        return not self._left


def train(config, workdir, stop_at=None):
    signals = lifecycle.Signals() if stop_at is None else StopAt(stop_at)
    training_run.train(config, str(workdir), signals=signals)


def averages(parts, workdir, kind, step):
    """Of all widths, by name."""
    checkpoints = StoredCheckpoints(str(workdir / kind))
    wanted = {"averages": parts.abstract_state.averages}
    found = jax.device_get(checkpoints.restore(step, wanted)["averages"])
    checkpoints.close()
    return found


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def distance(a, b):
    differences = jax.tree.map(lambda x, y: np.sum(np.square(np.float64(x) - y)), a, b)
    return float(np.sqrt(sum(jax.tree.leaves(differences))))


@pytest.fixture(scope="module")
def config():
    c = configuration.default()
    c.data.name, c.data.shape, c.data.num_classes = "synthetic", (8, 8, 3), 4
    c.model.depth, c.model.width, c.model.heads, c.model.patch = 1, 16, 2, (4,)
    c.train.steps, c.train.batch_size, c.optim.learning_rate = STEPS, 16, 3e-3
    c.train.ema_widths, c.train.ema_snapshots = WIDTHS, SNAPSHOTS
    c.evaluate.every = c.log.sensitivity_every = 0
    c.evaluate.batch_size = c.sample.batch_size = 16
    c.checkpoint.every, c.checkpoint.keep = 8, 2
    c.mesh.data, c.mesh.fsdp, c.mesh.zero1 = 4, 2, True
    configuration.validate(c)
    return c


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A run without a break."""
    workdir = tmp_path_factory.mktemp("averages") / "w"
    train(config, workdir)
    return build.run(config), workdir


@pytest.fixture
def of_two(finished, monkeypatch):
    """The same run, as if it had not tracked the width in the middle."""
    widths_of = run_weights.widths_of

    def outer(directory, step):
        return tuple(w for w in widths_of(directory, step) if w in (WIDTHS[0], WIDTHS[-1]))

    monkeypatch.setattr(run_weights, "widths_of", outer)
    return finished


def test_snapshots_are_even_and_none_is_removed(finished):
    parts, workdir = finished
    assert run_weights.steps_of(workdir, "checkpoints") == [16, 24]
    assert run_weights.steps_of(workdir, "ema_snapshots") == [6, 12, 18, 24]
    at_end = averages(parts, workdir, "ema_snapshots", STEPS)
    assert_equal(at_end, averages(parts, workdir, "checkpoints", STEPS))
    # They are of different widths.
    assert distance(at_end["0.1"], at_end["0.25"]) > 0.01


@pytest.mark.slow
def test_a_kill_after_a_snapshot_leaves_no_trace(config, finished, tmp_path, monkeypatch):
    parts, whole = finished
    workdir = tmp_path / "w"
    with pytest.raises(Stop, match="saved step 14"):
        train(config, workdir, stop_at=14)
    # As if killed: what is newer than step 8 was not saved, but snapshots were.
    shutil.rmtree(workdir / "checkpoints" / "14")
    assert run_weights.steps_of(workdir, "ema_snapshots") == [6, 12]
    shutil.rmtree(workdir / "ema_snapshots" / "12" / "averages")  # so that it must be written again
    save, found = Checkpoints.save, {}

    def watched(checkpoints, step, items, meta):
        if "params" in items:
            found[step] = run_weights.steps_of(workdir, "ema_snapshots")
        save(checkpoints, step, items, meta)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", watched)
        train(config, workdir)
    # No checkpoint is begun before all snapshots up to its step are committed.
    assert found == {16: [6, 12], 24: [6, 12, 18, 24]}
    for step in (12, 18, 24):
        assert_equal(*(averages(parts, w, "ema_snapshots", step) for w in (whole, workdir)))
    assert_equal(*(averages(parts, w, "checkpoints", STEPS) for w in (whole, workdir)))


def test_averages_are_divided_as_the_ema_is(finished):
    state = finished[0].abstract_state
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    for average in shardings.averages.values():
        assert jax.tree.leaves(average) == jax.tree.leaves(shardings.ema)
    assert jax.tree.leaves(shardings.ema) != jax.tree.leaves(shardings.params)


def make(of, out, width, step=None):
    parts, workdir = of
    found = post_hoc.reconstruct(
        parts.config, str(workdir), str(out), width=width, step=step, signals=lifecycle.Signals()
    )
    (at,) = run_weights.steps_of(out, "checkpoints")
    assert at == found["step"]
    return found, jax.device_get(run_weights.find(str(out)).read(parts.abstract_state.ema))


@pytest.mark.slow
def test_a_tracked_width_comes_back(of_two, tmp_path):
    parts, workdir = of_two
    found, average = make(of_two, tmp_path / "out", 0.25, step=12)
    assert found["snapshots"] == 1 and found["relative_error"] < 1e-6
    tracked = averages(parts, workdir, "ema_snapshots", 12)["0.25"]
    assert distance(average, tracked) < 1e-5 * float(optax.global_norm(tracked))


def test_another_width_is_that_which_would_have_been_tracked(of_two, tmp_path, monkeypatch):
    parts, workdir = of_two
    out = tmp_path / "out"
    tracked = averages(parts, workdir, "ema_snapshots", STEPS)
    read, live = run_weights.Stored.read, []

    def watched(stored, abstract):
        live.append(sum(x.nbytes for x in jax.live_arrays()))
        return read(stored, abstract)

    with monkeypatch.context() as patch:
        patch.setattr(run_weights.Stored, "read", watched)
        found, average = make(of_two, out, 0.15)
    # Beside the snapshot that is read next there is the sum, and nothing else of that size.
    size = sum(x.nbytes for x in jax.tree.leaves(average))
    assert len(live) == 2 * SNAPSHOTS + 1 and max(live[1:-1]) - live[0] < 0.1 * size
    assert found["snapshots"] == 2 * SNAPSHOTS and 0.01 < found["relative_error"] < 0.04
    error = distance(average, tracked["0.15"])
    assert error < found["relative_error"] * distance(tracked["0.1"], tracked["0.25"])
    # What is made is a run to read, and none to go on with.
    config = configuration.from_dict(json.loads((out / "config.json").read_text()))
    configuration.validate(config)
    assert config.train.ema_widths == () and config.model.width == parts.config.model.width
    with pytest.raises(ValueError, match="has something in it"):
        make(of_two, out, 0.12)
    with pytest.raises(ValueError, match="stored absent"):
        train(config, out)


@pytest.mark.parametrize(
    ("width", "step", "says"),
    [(0.3, None, "is not within"), (0.1, 25, "of steps 6 to 24")],
)
def test_what_cannot_be_made_says_so(of_two, tmp_path, width, step, says):
    with pytest.raises(ValueError, match=says):
        make(of_two, tmp_path / "out", width, step)
    assert not (tmp_path / "out").exists()


def test_a_run_without_snapshots_names_the_field(of_two, tmp_path):
    parts, workdir = of_two
    (tmp_path / "w").mkdir()
    shutil.copy(workdir / "config.json", tmp_path / "w")
    with pytest.raises(ValueError, match="train.ema_widths"):
        make((parts, tmp_path / "w"), tmp_path / "out", 0.1)


def test_a_warning_tells_what_is_not_to_be_trusted(of_two, tmp_path, capsys):
    found, _ = make(of_two, tmp_path / "out", 0.1, step=11)
    assert found["relative_error"] > 0.2
    assert "WARNING: the snapshots give the profile" in capsys.readouterr().out


def test_weights_are_found_by_width_and_step(of_two):
    parts, workdir = of_two
    abstract = parts.abstract_state.ema
    tracked = averages(parts, workdir, "ema_snapshots", STEPS)
    assert_equal(
        jax.device_get(run_weights.find(str(workdir), 0.25).read(abstract)), tracked["0.25"]
    )
    with pytest.raises(ValueError, match="tracks 0.1, 0.25; nrdm ema"):
        run_weights.find(str(workdir), 0.2)
    assert run_weights.find_at(str(workdir), 16).width is None
    earlier = averages(parts, workdir, "ema_snapshots", 6)["0.1"]
    found = run_weights.find_at(str(workdir), 6)
    assert_equal(jax.device_get(found.read(abstract)), earlier)
    with pytest.raises(ValueError, match=r"\(16, 24\) or snapshots \(6, 12"):
        run_weights.find_at(str(workdir), 7)


def test_a_workdir_may_have_a_step(tmp_path):
    (tmp_path / "a@7").mkdir()
    assert run_weights.at_step("runs/x@5000") == ("runs/x", 5000)
    assert run_weights.at_step("runs/x") == ("runs/x", None)
    assert run_weights.at_step(str(tmp_path / "a@7")) == (str(tmp_path / "a@7"), None)


@pytest.mark.slow
def test_the_commands(finished, tmp_path):
    _, workdir = finished
    out = tmp_path / "out"

    def run(entry, *arguments):
        return subprocess.run(
            [sys.executable, "-m", f"nrdm_jax.{entry}", *arguments],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    made = run("ema", f"--workdir={workdir}", "--width=0.12", "--step=18", f"--out={out}")
    assert made.returncode == 0, made.stderr
    found = json.loads(made.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert found["step"] == 18 and found["snapshots"] == 9 and found["relative_error"] < 0.1
    for wanted, says in (
        (("ema", f"--workdir={workdir}", "--width=0.12", f"--out={out}"), "has something in it"),
        (("ema", f"--workdir={out}", "--width=0.1", f"--out={out}_"), "train.ema_snapshots"),
        (("evaluate", f"--workdir={workdir}", "--ema_width=0.2"), "tracks 0.1, 0.15, 0.25; nrdm"),
    ):
        done = run(*wanted)
        assert done.returncode == 2 and says in done.stderr, done.stderr
    scored = run("evaluate", f"--workdir={out}", "--samples=0")
    assert scored.returncode == 0, scored.stderr
    assert (out / "evals" / "scores.json").exists()


@pytest.mark.slow
def test_samples_of_a_width_guided_away_from_an_earlier_step(of_two, tmp_path):
    parts, workdir = of_two
    config, drawn = parts.config, {}
    guided = {"guidance": 3.0, "weaker": f"{workdir}@{STEPS - 6}"}
    for name, options in {
        "ema": {},
        "width": {"ema_width": 0.1},
        "guided": {"ema_width": 0.1, **guided},
    }.items():
        _, drawn[name] = scoring.draw(
            config, str(workdir), tmp_path / name, seeds=[0, 1], labels=[0, 1], steps=2,
            signals=lifecycle.Signals(), **options,
        )  # fmt: skip
    assert np.abs(drawn["ema"] - drawn["width"]).max() > 1e-3
    assert np.abs(drawn["guided"] - drawn["width"]).max() > 1e-3
    manifest = json.loads((tmp_path / "guided" / "manifest.json").read_text())
    assert manifest["ema_width"] == 0.1 and manifest["weaker"] == guided["weaker"]
    assert manifest["weaker_weights"].startswith("average of width 0.1 of")
    with pytest.raises(ValueError, match=f"@{STEPS - 1}: there is no such step"):
        scoring.draw(
            config, str(workdir), tmp_path / "x", seeds=[0], labels=[0], guidance=2.0,
            signals=lifecycle.Signals(), weaker=f"{workdir}@{STEPS - 1}",
        )  # fmt: skip
