"""The benchmarks run: their help always, what they claim of correctness with --slow."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import data_speed, depth_report, depth_runs
from nrdm_jax import config as configuration
from nrdm_jax.data.latents import LatentSource

ROOT = pathlib.Path(__file__).resolve().parents[1]
NAMES = sorted(
    path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text()
)


def run(*command):
    # Without the simulated devices of the tests.
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment,
                          capture_output=True, text=True, timeout=1200, check=False)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_help_names_the_command(name):
    done = run(f"benchmarks.{name}", "--help")
    assert done.returncode == 0 and f"python -m benchmarks.{name}" in done.stdout


def test_latents_whose_speed_is_measured_are_those_of_a_run(monkeypatch, tmp_path):
    """A set on disk, and draws from it."""
    monkeypatch.setattr(data_speed, "LATENTS", 600)
    monkeypatch.setattr(data_speed, "LATENT_SHAPE", (2, 2, 4))
    config = configuration.default()
    config.data.name, config.data.shape, config.data.num_classes = "latents", (2, 2, 4), 3
    found = data_speed.source(config, str(tmp_path))
    assert isinstance(found, LatentSource) and len(found) == 600 and found.shape == (2, 2, 4)
    assert len([*(tmp_path / "set").glob("latents-*")]) == 2
    one, again = (found.drawn(0)(np.arange(600), np.arange(600) + at)["x"] for at in (0, 600))
    np.testing.assert_allclose([one.mean(), one.var()], [0, 1], atol=0.05)
    assert 0 < np.abs(one - again).mean() < 0.5  # the spread is a part of it


def test_a_jump_is_told_from_noise_and_from_the_start():
    steps = range(10, 210, 10)
    falling = [2.0 * 0.95**i + 0.2 * (i % 2) for i in range(20)]
    assert depth_runs.first_jump(list(zip(steps, falling, strict=True))) is None
    jumped = falling[:12] + [3 * falling[0]] * 8
    assert depth_runs.first_jump(list(zip(steps, jumped, strict=True))) == 130
    broken = [*falling[:3], float("nan")]
    assert depth_runs.first_jump(list(zip(steps, broken, strict=False))) == 40


def test_study_has_every_row_that_was_asked_once():
    runs = depth_runs.study()
    assert len({run.name for run in runs}) == len(runs)
    rows = {(r.structure, r.depth, r.rate, r.seed) for r in runs}
    for rate in ("half", "one", "stress"):
        for structure in ("gated", "resnet", "rezero", "layerscale", "deepnorm", "mv_split"):
            wanted = {(structure, d, rate, s) for d in (28, 100) for s in (0, 1)}
            assert wanted | {(structure, 400, rate, 0)} <= rows
        assert {(s, 1000, rate, 0) for s in ("gated", "mv_split", "resnet")} <= rows


def test_no_two_studies_do_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setattr(depth_runs, "WORKDIRS", tmp_path)
    first, other = depth_runs.study()[:2]
    claim = depth_runs.claim
    with claim(first) as mine, claim(first) as too, claim(other) as another:
        assert (mine, too, another) == (True, False, True)
    with depth_runs.claim(first) as mine:
        assert mine


def flat(value):
    return np.full((3, 8, 8, 3), value, np.float32)


def test_blind_losses_are_the_variances_that_are_left():
    # Patches differ by 2 within a picture, and pictures do not differ: the place tells all.
    halves = np.concatenate([flat(-1.0)[:, :4], flat(1.0)[:, 4:]], 1)
    assert depth_report.blind_losses(halves, halves, 4) == (1.0, 2.0)
    assert depth_report.blind_losses(flat(0.0), flat(0.5), 4) == (1.25, 1.25)


def test_the_report_tells_losses_jumps_and_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(depth_runs, "RESULTS", tmp_path / "runs")
    monkeypatch.setattr(depth_report, "DOCS", tmp_path)
    monkeypatch.setattr(depth_report, "pictures", lambda: (flat(0.0), flat(0.5), 4))
    depth_runs.RESULTS.mkdir()
    for structure in depth_runs.STRUCTURES:
        for seed in (0, 1):
            run = depth_runs.Run(structure, 28, "one", seed)
            result = dataclasses.asdict(run) | {
                "name": run.name, "units": 56, "parameters": 1_000, "gate_parameters": 10,
                "finished": True, "jumped_at": 40 if structure == "resnet" else None,
                "last_step": 50, "loss": [[10, 1.0], [50, 0.5]],
                "heldout_loss": [[0, 1.0], [50, 0.5 + 0.1 * seed]], "slope": [0.1],
                "token_mean_share_max": [1.0], "profile": [[1.0, 2.0]],
                "token_mean_share": [[1.0, 1.0]], "trunk_rms": [[1.0, 1.0]], "probed_at": [50],
            }  # fmt: skip
            if structure == "rezero":  # ended before its first probe
                result |= {"finished": False, "last_step": 34, "probed_at": [], "slope": []}
                result |= {"token_mean_share_max": [], "profile": [], "token_mean_share": []}
            run.result.write_text(json.dumps(result))
    assert depth_report.write() == 0
    text = (tmp_path / "README.md").read_text()
    assert "has 1.25 at best" in text
    assert "| gated | 0.550 ± 0.050 |" in text
    assert "| resnet | 0.550 ± 0.050 jump 40 jump 40 |" in text
    assert "| rezero | stopped 34 stopped 34 |" in text
    assert "gated-1000-one-seed0" in text and "gated-28-one-seed0," not in text
    assert (tmp_path / "depth_28.png").stat().st_size > 0


def test_a_run_that_ends_before_its_first_probe_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(depth_runs, "parameters", lambda workdir: {"all": 10, "gates": 1})
    step = {"step_time": 2.0, "grad_norm": 1.0}
    rows = [{"step": 0, "heldout_loss": 1.7}]
    rows += [{"step": 10, "loss": 1.6, **step}, {"step": 20, "loss": 1e9, **step}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = depth_runs.record(depth_runs.Run("resnet", 400, "one"), tmp_path, finished=False)
    assert kept["last_step"] == 20 and not kept["finished"]
    assert kept["probed_at"] == kept["profile"] == kept["slope"] == []
    assert kept["train_seconds"] == 40


@pytest.mark.slow
def test_a_killed_run_is_the_run_that_was_not():
    done = run("benchmarks.resume", "--config=configs/openmoji32.py:smoke")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert result["bitwise"] is True and result["steps"] == [20, 20]


@pytest.mark.slow
def test_a_run_on_other_devices_on_its_way_is_the_run_that_was_not():
    done = run("benchmarks.elastic")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert result["fingerprints_equal"] is True and result["batches_equal"] is True
    assert 0 < result["loss_difference"] <= 1e-5 and result["steps"] == 20


@pytest.mark.slow
def test_sigterm_in_training_is_75_for_both_and_loses_nothing():
    done = run("benchmarks.preempt", "--cases=train")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert result["saved_once"] and result["exit_codes_right"] and result["bitwise"]


@pytest.mark.slow
def test_killed_at_random_moments_a_run_is_the_run_that_was_not():
    done = run("benchmarks.kill_test", "--kills=4")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert result["bitwise"] is True and result["kills"] == 4 and result["kills_in_save"] >= 1
    assert result["records_lost"] == result["records_repeated"] == 0


@pytest.mark.slow
def test_averages_that_are_made_are_those_that_were_tracked():
    done = run("benchmarks.post_hoc_ema", "--steps=320")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert result["most_apart_kept"] < result["most_apart"] and len(result["rows"]) == 12


@pytest.mark.slow
def test_train_step_is_measured_beside_torch():
    pytest.importorskip("torch", reason="the extra torch is not installed")
    done = run("benchmarks.train_step", "--batch_size=2", "--micro_batches=1", "--at_least=0.01")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert result["pairs"] >= 7 and result["ratio_spread"][0] <= result["ratio"]


@pytest.mark.slow
def test_autoencoders_are_those_of_diffusers():
    pytest.importorskip("diffusers", reason="the extra torch is not installed")
    done = run("benchmarks.autoencoder_parity")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert 0 < result["worst"] <= 1e-4 and len(result["differences"]) == 4
    assert result["taef2_db"] is None or result["taef2_db"] > 20


@pytest.mark.slow
def test_text_encoders_are_those_of_transformers():
    for package in ("torch", "transformers"):
        pytest.importorskip(package, reason="the extra torch is not installed")
    done = run("benchmarks.text_parity")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert 0 < result["worst"] <= 1e-4 and len(result["differences"]) == 7


@pytest.mark.slow
def test_the_sampler_is_measured_beside_diffusers():
    pytest.importorskip("torch", reason="the extra torch is not installed")
    done = run("benchmarks.sampling_speed", "--depth=1", "--steps=2", "--at_least=0.01")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert result["pairs"] >= 7 and result["ratio_spread"][0] <= result["ratio"]
    assert result["our_batch_size"] == 4
