"""The main job's smoke config, as a user runs it: real processes, real data, real kills."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from benchmarks import jobs

ROOT = pathlib.Path(__file__).resolve().parents[1]
SMOKE = "--config=configs/openmoji32.py:smoke"


def start(entry, *arguments, **environment):
    # One device, as on a laptop, and not the eight of the tests.
    given = os.environ | {"XLA_FLAGS": jobs.UNOPTIMIZED} | environment
    return subprocess.Popen(
        [sys.executable, "-m", f"nrdm_jax.{entry}", *arguments],
        cwd=ROOT, env=given, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process):
    out, err = process.communicate(timeout=900)
    return process.returncode, out, err


def run(entry, *arguments, **environment):
    return finish(start(entry, *arguments, **environment))


def result(out):
    return json.loads(out.strip().splitlines()[-1].removeprefix("RESULT "))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished smoke run."""
    workdir = tmp_path_factory.mktemp("run") / "w"
    code, out, err = run("train", SMOKE, f"--workdir={workdir}")
    assert code == 0, err
    return workdir, out


def test_a_run_leaves_what_it_promises(finished):
    workdir, out = finished
    names = {p.name for p in workdir.iterdir()}
    assert {"config.json", "env.json", "metrics.jsonl", "checkpoints"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [r["step"] for r in rows if "loss" in r] == [5, 10, 15, 20]
    assert all(row["images"] == 16 * row["step"] for row in rows)
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds) and 0 < rows[-1]["step_seconds"] < seconds[-1]
    assert json.loads((workdir / "env.json").read_text())["parameters"] > 0
    losses = [r["heldout_loss"] for r in rows if "heldout_loss" in r]
    assert losses[-1] < losses[0]
    probes = [r for r in rows if "profile" in r]
    assert [r["step"] for r in probes] == [5, 10, 15, 20] and len(probes[0]["profile"]) == 5
    assert min(probes[-1]["profile"]) > 0 and len(probes[0]["trunk_rms"]) == 5
    assert "sensitivity.png" in names and out.count("train step compiled in") == 1
    line = next(x for x in out.splitlines() if x.startswith("step=20/20"))
    for field in ("loss=", "grad_norm=", "lr=", "step_time=", "img/s=", "TFLOP/s/chip=",
                  "data_wait=", "eta=", "goodput="):  # fmt: skip
        assert f" {field}" in line


def test_a_finished_run_run_again_says_so(finished):
    workdir, _ = finished
    before = (workdir / "metrics.jsonl").read_text()
    code, out, _ = run("train", SMOKE, f"--workdir={workdir}")
    assert code == 0 and "is finished: step 20 of 20" in out
    assert (workdir / "metrics.jsonl").read_text() == before


def test_a_changed_config_is_refused_unless_allowed(finished):
    workdir, _ = finished
    code, _, err = run("train", SMOKE, f"--workdir={workdir}", "--config.train.steps=21")
    assert code == 2 and "train.steps: 20 -> 21" in err and "--allow_config_change" in err


def test_samples_are_the_ema_s_and_repeat(finished, tmp_path):
    workdir, _ = finished
    for out in ("a", "b"):
        code, text, err = run(
            "sample", f"--workdir={workdir}", "--seeds=0-2,9", "--labels=0,1", "--steps=3",
            "--guidance=2.0", "--trajectory=2", f"--out={tmp_path / out}",
        )  # fmt: skip
        assert code == 0, err
        assert result(text)["samples"] == 4
    a, b = (json.loads((tmp_path / out / "manifest.json").read_text()) for out in ("a", "b"))
    assert a == b and a["seeds"] == [0, 1, 2, 9] and a["labels"] == [0, 1, 0, 1]
    for name in a["files"] + ["grid.png", a["trajectory"]["file"]]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert len(a["trajectory"]["times"]) == 2


@pytest.mark.slow
def test_captions_are_trained_on_and_drawn(tmp_path):
    workdir, out = tmp_path / "w", tmp_path / "out"
    code, _, err = run(
        "train", SMOKE, f"--workdir={workdir}", "--config.data.name=synthetic",
        "--config.text.encoder=bytes", "--config.text.width=16", "--config.text.depth=1",
        "--config.log.sensitivity_every=0", "--config.sample.every=20",
    )  # fmt: skip
    assert code == 0, err
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [row["heldout_loss"] for row in rows if "heldout_loss" in row]
    assert losses[-1] < losses[0]
    told = json.loads((workdir / "samples" / "step_20" / "manifest.json").read_text())
    assert told["captions"][0] == "pattern number 0" and len(told["captions"]) == 8
    (tmp_path / "texts.txt").write_text("a red car\nné/../x\n")
    code, _, err = run(
        "sample", f"--workdir={workdir}", "--seeds=0-2", "--steps=2", f"--out={out}",
        f"--captions={tmp_path / 'texts.txt'}",
    )  # fmt: skip
    assert code == 0, err
    told = json.loads((out / "manifest.json").read_text())
    assert told["captions"] == ["a red car", "né/../x", "a red car"]
    assert told["labels"] == [10, 10, 10]  # no class
    assert told["files"][:2] == ["00000_seed0_a-red-car.png", "00001_seed1_né-x.png"]
    assert all((out / name).stat().st_size > 0 for name in told["files"])


@pytest.mark.slow
def test_samples_are_guided_away_from_a_weaker_run(finished, tmp_path):
    workdir, _ = finished
    grids = {}
    for name, scale in (("itself", ["--guidance=3.0", f"--weaker={workdir}"]),
                        ("plain", ["--guidance=1.0"])):  # fmt: skip
        code, _, err = run(
            "sample", f"--workdir={workdir}", "--seeds=0-3", "--steps=2",
            f"--out={tmp_path / name}", *scale,
        )  # fmt: skip
        assert code == 0, err
        grids[name] = np.asarray(Image.open(tmp_path / name / "grid.png")).astype(int)
    # Away from itself is nowhere.
    assert np.abs(grids["itself"] - grids["plain"]).max() <= 1
    code, _, err = run("sample", f"--workdir={workdir}", f"--weaker={workdir}", "--guidance=1")
    assert code == 2 and "give --guidance above 1" in err
    code, _, err = run(
        "sample", f"--workdir={workdir}", f"--weaker={workdir}", "--config=configs/openmoji32.py",
        "--config.model.depth=2", "--config.diffusion.prediction=v", "--guidance=2",
    )  # fmt: skip
    assert code == 2 and "diffusion.prediction='velocity'" in err


@pytest.mark.slow
def test_a_read_only_run_can_be_scored(finished, tmp_path):
    workdir, _ = finished
    code, out, err = run("evaluate", f"--workdir={workdir}", "--samples=4")
    assert code == 0, err
    scores = result(out)
    assert scores["heldout_examples"] == 423
    assert 0.2 < scores["wiener"] < 0.4 < scores["heldout_loss"] < 1.8
    assert sum(name.startswith("heldout_loss/log_snr") for name in scores) == 8
    assert 0 < scores["nearest_heldout"] < scores["nearest_samples"]


def test_dynamics_are_the_path_s_and_the_run_s(finished, tmp_path):
    workdir, _ = finished
    code, out, err = run("dynamics", f"--workdir={workdir}", f"--out={tmp_path}", "--examples=40")
    assert code == 0, err
    assert "qualitative" in out and result(out)["gates"] == ["alpha", "beta"]
    found = json.loads((tmp_path / "dynamics.json").read_text())
    t = np.asarray(found["t"])
    # x_t = (1 - t) x0 + t eps: f = -1 / (1 - t), g^2 / 2 = t / (1 - t)
    np.testing.assert_allclose(found["minus_f"], 1 / (1 - t), rtol=1e-4)
    np.testing.assert_allclose(found["half_g_squared"], t / (1 - t), rtol=1e-4)
    assert np.shape(found["alpha"]["rms"]) == np.shape(found["beta"]["mean"]) == (4, len(t))
    assert np.min(found["alpha"]["rms"]) > 0
    assert found["after_blocks"] == [0, 1, 2] and found["examples"] == 40
    assert np.shape(found["x0_error"]) == (8, 3)
    assert (tmp_path / "dynamics.png").stat().st_size > 20_000


def test_sample_of_no_run_and_of_no_class(finished, tmp_path):
    workdir, _ = finished
    code, _, err = run("sample", f"--workdir={tmp_path / 'none'}")
    assert code == 2 and "is no run" in err and not (tmp_path / "none").exists()
    code, _, err = run("sample", f"--workdir={workdir}", "--labels=11")
    assert code == 2 and "--labels: 11 is no class; give 0..9" in err


def test_sigterm_saves_and_the_same_command_goes_on(finished, tmp_path):
    workdir = tmp_path / "w"
    arguments = (SMOKE, f"--workdir={workdir}", "--config.train.steps=4000",
                 "--config.checkpoint.every=100000", "--config.evaluate.every=0")  # fmt: skip
    process = start("train", *arguments)
    metrics = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.2)
    # Nobody else may have the workdir meanwhile.
    code, _, err = run("train", *arguments)
    assert code == 74 and "is in use by another run" in err
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 75 and "the same command goes on" in err, err
    (step,) = [p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]
    process = start("train", *arguments)
    line = next(x for x in process.stdout if x.startswith("restored"))
    # A signal before the first step: there is nothing new to save.
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 75 and "Traceback" not in err, err
    assert line.startswith(f"restored step {step}, {16 * int(step)} records seen")


def test_non_finite_loss_stops_with_the_last_good_step(tmp_path):
    code, _, err = run(
        "train", SMOKE, f"--workdir={tmp_path / 'w'}", "--config.optim.learning_rate=1e30",
        "--config.optim.clip_norm=0.0", "--config.evaluate.every=0", "--config.checkpoint.every=1",
    )  # fmt: skip
    assert code == 70, err
    assert "loss=" in err and "last good checkpoint: step" in err and "optim.learning_rate" in err


@pytest.mark.slow
def test_init_from_starts_at_the_other_run_s_average(finished, tmp_path):
    workdir, _ = finished
    code, out, err = run(
        "train", SMOKE, f"--workdir={tmp_path / 'w'}", f"--config.checkpoint.init_from={workdir}",
        "--config.train.steps=1", "--config.evaluate.examples=0", "--config.evaluate.every=5",
    )  # fmt: skip
    assert code == 0 and f"started from the weights of {workdir}" in out, err
    scores = result(run("evaluate", f"--workdir={workdir}", "--samples=0")[1])
    first = json.loads((tmp_path / "w" / "metrics.jsonl").read_text().splitlines()[0])
    np.testing.assert_allclose(first["heldout_loss"], scores["heldout_loss"], rtol=1e-6)


def test_missing_data_is_65_and_leaves_no_workdir(tmp_path):
    code, _, err = run(
        "train", SMOKE, f"--workdir={tmp_path / 'w'}", "--config.data.name=tfds:nothing"
    )
    assert code == 65 and "not prepared" in err and not (tmp_path / "w").exists()
    code, _, err = run(
        "train", SMOKE, f"--workdir={tmp_path / 'w'}", "--config.data.name=synthetic",
        "--config.train.batch_size=1024", "--config.train.micro_batches=1",
    )  # fmt: skip
    assert code == 65 and "512 records are fewer than train.batch_size=1024" in err
    assert not (tmp_path / "w").exists()


def test_a_workdir_that_cannot_be_written_is_74():
    code, _, err = run("train", SMOKE, "--workdir=/proc/nrdm")
    assert code == 74 and "cannot be written" in err


def test_torch_tensorflow_and_clu_stay_out_of_a_run(tmp_path):
    script = f"""
import sys
sys.argv = ["train", "{SMOKE}", "--workdir={tmp_path / "w"}", "--config.train.steps=2",
            "--config.sample.every=1", "--config.log.profile_start=1"]
from nrdm_jax import train
try:
    train.main()
finally:
    print([m for m in ("torch", "tensorflow", "clu") if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=os.environ | {"XLA_FLAGS": jobs.UNOPTIMIZED},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"
    assert (tmp_path / "w" / "samples" / "step_2" / "grid.png").exists()
    assert list((tmp_path / "w" / "profile").rglob("*.xplane.pb"))


SMOKES = ("openmoji32_uvit", "openmoji32_unet", "moving_emoji", "volume_smoke", "depth_1000")


@pytest.mark.slow
@pytest.mark.parametrize("name", SMOKES)
def test_the_other_stacks_and_data_train_draw_and_score(name, tmp_path):
    code, out, err = run("job", f"--config=configs/{name}.py:smoke", f"--workdir={tmp_path / 'w'}")
    assert code == 0, err
    found = result(out)
    assert found["heldout_loss_last"] < found["heldout_loss_first"] and found["ratio"] > 0
    assert pathlib.Path(found["grid"]).stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moving_emoji", "volume_smoke"])
def test_clips_and_solids_are_learnt_beyond_the_best_linear_denoiser(name, tmp_path):
    code, out, err = run(
        "job", f"--config=configs/{name}.py", f"--workdir={tmp_path / 'w'}", "--at_most=1",
        "--config.train.steps=200", XLA_FLAGS="",
    )  # fmt: skip
    assert code == 0, err
    assert result(out)["ratio"] < 1
    drawn = tmp_path / "w" / "samples" / "final"
    with Image.open(drawn / "grid.gif") as clip:
        assert clip.n_frames in (8, 16)
    assert (drawn / "slices.png").stat().st_size > 1_000
