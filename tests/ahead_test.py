"""Compiling ahead says what the compiler says."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from nrdm_jax.sharding import topologies

ROOT = pathlib.Path(__file__).resolve().parents[1]


def compile_ahead(*flags):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-m", "nrdm_jax.compile_ahead", *flags], cwd=ROOT, env=environment,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_for_eight_devices_that_are_simulated(tmp_path):
    small = ("--config=configs/openmoji32.py:smoke", "--topology=cpu:8", "--config.model.depth=2",
             "--config.mesh.data=2", "--config.mesh.fsdp=4")  # fmt: skip
    done = compile_ahead(*small, f"--json={tmp_path}/a.json", f"--picture={tmp_path}/a.png")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert result == json.loads((tmp_path / "a.json").read_text())
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert result["devices"] == 8 and result["fits"] is None  # nobody knows a CPU's room
    # Weights are gathered, gradients are summed; the state is a quarter, and some small leaves.
    kinds = {row["kind"] for row in result["collectives"]}
    assert {"all-gather"} < kinds and kinds & {"all-reduce", "reduce-scatter"}
    state = 4 * 4 * result["parameters"] / 2**30
    held = sum(result["memory_gib"][name] for name in ("params", "ema", "optimizer"))
    assert state / 4 < held + 0.002 < state / 3 + 0.002


def test_the_sampler_too():
    done = compile_ahead("--config=configs/openmoji32.py:smoke", "--topology=cpu:2",
                         "--what=sample", "--config.model.depth=2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))["what"] == "sample"


@pytest.mark.skipif(
    not topologies.missing_extra(topologies.parse("tpu:v5p:4x4x4")), reason="the extra is there"
)
def test_without_its_compiler_the_extra_is_named():
    done = compile_ahead("--config=configs/nrdm_f_1000.py:v5p", "--topology=tpu:v5p:4x4x4")
    assert done.returncode == 2 and "--extras=tpu-aot" in done.stderr


@pytest.mark.skipif(
    bool(topologies.missing_extra(topologies.parse("tpu:v5p:2x2x1"))),
    reason="the extra tpu-aot is not installed",
)
def test_for_a_tpu_that_is_not_there():
    batches = (f"--config.{name}.batch_size=16" for name in ("train", "evaluate", "sample"))
    done = compile_ahead(
        "--config=configs/nrdm_f_1000.py:v5p",
        "--topology=tpu:v5p:2x2x1",
        "--config.model.depth=4",
        *batches,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert result["fits"] and 0 < result["mfu_not_overlapped"] <= result["mfu"] <= 1
