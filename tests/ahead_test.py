"""Compiling ahead says what the compiler says."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from benchmarks import jobs
from nrdm_jax import ahead
from nrdm_jax.sharding import topologies

ROOT = pathlib.Path(__file__).resolve().parents[1]


def compile_ahead(*flags):
    environment = os.environ | {"XLA_FLAGS": jobs.UNOPTIMIZED}
    return subprocess.run(
        [sys.executable, "-m", "nrdm_jax.compile_ahead", *flags], cwd=ROOT, env=environment,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_for_eight_devices_that_are_simulated(tmp_path):
    flags = ("--config=configs/openmoji32.py:smoke", "--topology=cpu:8", "--config.model.depth=2",
             "--config.mesh.data=2", "--config.mesh.fsdp=4")  # fmt: skip
    done = compile_ahead(*flags, f"--json={tmp_path}/a.json", f"--picture={tmp_path}/a.png",
                         "--table")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = (row for row in done.stdout.splitlines() if row.startswith("patch_embed/kernel"))
    # 4 x 4 x 3 numbers of a patch, of 4 bytes, to a width of 32 that is divided by four.
    assert line.split()[-5:] == ["float32", "1,536", "1,536", "-,", "fsdp"]
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


@pytest.mark.slow
def test_the_step_of_each_bucket_is_compiled(tiny_config, capsys):
    tiny_config.data.buckets = ((8, 8, 3), (8, 32, 3))
    tiny_config.data.bucket_tokens, tiny_config.data.bucket_multiple = 64, 8
    before = jax.config.jax_enable_compilation_cache
    try:
        result = ahead.view(tiny_config, topologies.parse("cpu:8"))
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
    square, wide = result["buckets"]
    assert [row["shape"] for row in (square, wide)] == [[8, 8, 3], [8, 32, 3]]
    # As many tokens in each: 4 and 16 patches an example, over which attention grows.
    assert [row["batch"] for row in (square, wide)] == [16, 8]
    assert 2 * square["flops"] < wide["flops"] * 2 < 4 * square["flops"]
    most = max(result["buckets"], key=lambda row: row["peak_gib"])
    assert result | most == result
    said = capsys.readouterr().out
    assert "bucket of (8, 32, 3), batch 8" in said and "most memory of 2 buckets: that of (" in said


def test_the_sampler_too():
    done = compile_ahead("--config=configs/openmoji32.py:smoke", "--topology=cpu:2",
                         "--what=sample", "--config.model.depth=2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))["what"] == "sample"


def needs(extra: str, topology: str):
    return pytest.mark.skipif(
        bool(topologies.missing_extra(topologies.parse(topology))),
        reason=f"the extra {extra} is not installed",
    )


@pytest.mark.skipif(
    not topologies.missing_extra(topologies.parse("tpu:v5p:4x4x4")), reason="the extra is there"
)
def test_without_its_compiler_the_extra_is_named():
    done = compile_ahead("--config=configs/nrdm_f_1000.py:v5p", "--topology=tpu:v5p:4x4x4")
    assert done.returncode == 2 and "--extras=tpu-aot" in done.stderr


def small(name: str, topology: str, *flags: str):
    """nrdm_f_1000 with four blocks and a batch of 16."""
    batches = (f"--config.{part}.batch_size=16" for part in ("train", "evaluate", "sample"))
    done = compile_ahead(f"--config=configs/nrdm_f_1000.py:{name}", f"--topology={topology}",
                         "--config.model.depth=4", "--config.mesh.data=1", "--config.mesh.fsdp=-1",
                         *batches, *flags)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))


@needs("tpu-aot", "tpu:v5p:2x2x1")
def test_for_a_tpu_that_is_not_there():
    plain, fused, eight_bits = (
        small("v5p", "tpu:v5p:2x2x1", *flags)
        for flags in ((), ["--config.model.attention_kernel=splash"],
                      ["--config.model.quantize=int8"])
    )  # fmt: skip
    for result in (plain, fused, eight_bits):
        assert result["fits"] and 0 < result["mfu_not_overlapped"] <= result["mfu"] <= 1
    # Forward, forward again under remat, and backward twice: of queries, of keys and values. XLA
    # makes some kernels of this kind itself.
    kernels = [result["custom_calls"].get("tpu_custom_call", 0) for result in (plain, fused)]
    assert kernels[1] >= kernels[0] + 3
    assert eight_bits["products"]["s8"] >= 6 and "s8" not in plain["products"]
    assert eight_bits["flops"] == fused["flops"] == plain["flops"]


@needs("gpu-aot", "gpu:h100:1x4")
@pytest.mark.parametrize("kernel", ["xla", "cudnn"])
def test_for_a_gpu_that_is_not_there(kernel):
    if kernel == "cudnn" and importlib.util.find_spec("nvidia.cudnn") is None:
        pytest.skip("the extra cudnn-aot is not installed")
    result = small("h100", "gpu:h100:1x4", f"--config.model.attention_kernel={kernel}")
    fused = [name for name in result["custom_calls"] if "fmha" in name]
    assert len(fused) == (2 if kernel == "cudnn" else 0)  # forward and backward
    assert result["fits"] and 0 < result["mfu_not_overlapped"] <= result["mfu"] <= 1
