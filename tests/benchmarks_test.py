"""The benchmarks run: their help always, what they claim of correctness with --slow."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks import depth_runs

ROOT = pathlib.Path(__file__).resolve().parents[1]
NAMES = sorted(
    path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text()
)


def run(*command):
    # Without the simulated devices of the tests.
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment,
                          capture_output=True, text=True, timeout=600, check=False)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_help_names_the_command(name):
    done = run(f"benchmarks.{name}", "--help")
    assert done.returncode == 0 and f"python -m benchmarks.{name}" in done.stdout


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


@pytest.mark.slow
def test_a_killed_run_is_the_run_that_was_not():
    done = run("benchmarks.resume", "--config=configs/openmoji32.py:smoke")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert result["bitwise"] is True and result["steps"] == [20, 20]


@pytest.mark.slow
def test_train_step_is_measured_beside_torch():
    pytest.importorskip("torch", reason="the extra torch is not installed")
    done = run("benchmarks.train_step", "--batch_size=2", "--micro_batches=1", "--at_least=0.01")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert result["pairs"] >= 7 and result["ratio_spread"][0] <= result["ratio"]
