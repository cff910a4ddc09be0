"""What answers before jax is imported: help and every error of flags and config."""

import json
import os
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

from benchmarks import jobs
from nrdm_jax import cli, command_line

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = "--config=configs/openmoji32.py"


def run(*command, **environment):
    # An import of jax would fail, so that "before jax" is not a matter of the clock.
    environment = dict(os.environ, PYTHONPATH=environment.pop("path", ""), **environment)
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment,
                          capture_output=True, text=True, timeout=60, check=False)  # fmt: skip


@pytest.fixture(scope="module")
def no_jax(tmp_path_factory):
    directory = tmp_path_factory.mktemp("no_jax")
    (directory / "jax.py").write_text("raise RuntimeError('jax was imported')\n")
    return str(directory)


@pytest.mark.parametrize("entry", cli.ENTRIES)
def test_help(entry, no_jax):
    module = cli.MODULES.get(entry, entry)
    done = run("-m", f"nrdm_jax.{module}", "--help", path=no_jax)
    of_what = {
        "compile_ahead": "--topology",
        "compare": "--labels",
        "data": "--shape",
        "checkpoint": "--step",
    }.get(entry, "--workdir")
    assert done.returncode == 0 and "python -m" in done.stdout
    # In the list of flags, and not only in an example; under the one name of all entries as well.
    assert f"  {of_what}:" in done.stdout
    if entry in ("train", "evaluate", "data"):
        same = run("-m", "nrdm_jax.cli", entry, "--help", path=no_jax)
        flags = [x for x in done.stdout.splitlines() if x.startswith("  --")]
        assert len(flags) > 3 and all(flag in same.stdout for flag in flags)


def test_nrdm_calls_the_entries(no_jax):
    done = run("-m", "nrdm_jax.cli", "--help", path=no_jax)
    assert done.returncode == 0 and all(entry in done.stdout for entry in cli.ENTRIES)
    done = run(
        "-m",
        "nrdm_jax.cli",
        "train",
        CONFIG,
        "--workdir=/nonexistent/w",
        "--config.seed=-1",
        path=no_jax,
    )
    assert done.returncode == 2 and "seed is -1" in done.stderr
    assert run("-m", "nrdm_jax.cli", "tran", path=no_jax).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((CONFIG, "--config.model.depht=3"), r'--config.model.depht=3: .*"depth"'),
        ((CONFIG, "--confg=x"), "confg.*Did you mean: config"),
        ((CONFIG, "--config.model.depth=x"), "--config.model.depth=x: invalid"),
        ((CONFIG, "--config.optim.learning_rate=abc"), "--config.optim.learning_rate=abc"),
        ((CONFIG, "--config.model.heads=5"), "model.heads is 5.*nearest that does is"),
        ((CONFIG, "--config.model.patch=5"), r"model.patch is \(5,\).*nearest that does is 4"),
        (
            (CONFIG, "--config.diffusion.prediction=eps"),
            "diffusion.prediction is eps.*diffusion.path",
        ),
        (
            (CONFIG, "--config.mesh.data=3", "--config.mesh.fsdp=7"),
            "train.batch_size gives micro-batches",
        ),
        ((CONFIG, "extra"), "unexpected argument 'extra'"),
        (("--config=configs/none.py",), "--config: .*configs/none.py"),
        (("--config=configs/openmoji32.py:tiny",), "no argument 'tiny'; give none, or smoke"),
        ((), "--config"),
    ],
)
def test_errors_name_field_and_fix_and_make_nothing(arguments, says, no_jax, tmp_path):
    workdir = tmp_path / "w"
    done = run("-m", "nrdm_jax.train", *arguments, f"--workdir={workdir}", path=no_jax)
    assert done.returncode == 2
    assert re.search(says, done.stderr.replace("\n", " ")), done.stderr
    assert "Traceback" not in done.stderr and not workdir.exists()


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ("32x40", "--shape='32x40': give the axes of an example, such as 24,40,3"),
        ("32,42,3", r"--shape has \(32, 42, 3\).* does not divide the axis of 42"),
        ("32,32,1", "--shape has .* as many axes and channels as data.shape="),
    ],
)
def test_a_shape_that_cannot_be_drawn_is_seen_before_jax(shape, says, no_jax, tmp_path):
    arguments = (CONFIG, f"--workdir={tmp_path}", f"--shape={shape}")
    done = run("-m", "nrdm_jax.sample", *arguments, path=no_jax)
    assert done.returncode == 2 and re.search(says, done.stderr), done.stderr


def test_a_changed_config_is_seen_before_jax(no_jax, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    done = run("-m", "nrdm_jax.train", CONFIG, f"--workdir={tmp_path}", path=no_jax)
    assert done.returncode == 2 and "--config differs" in done.stderr


def test_runs_are_compared_without_jax(no_jax, tmp_path):
    for name, loss in (("a", 2.0), ("b", 1.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "metrics.jsonl").write_text(f'{{"step": 3, "heldout_loss": {loss}}}\n')
    runs = [str(tmp_path / "a"), str(tmp_path / "b")]
    # Flags may stand after the runs.
    done = run("-m", "nrdm_jax.cli", "compare", *runs, "--labels=x,y", path=no_jax)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert found["out"] == str(tmp_path / "a" / "compare") and "| x " in done.stdout
    assert [(r["label"], r["images"], r["heldout_loss"]) for r in found["runs"]] == [
        ("x", 192, 2.0), ("y", 192, 1.0),
    ]  # fmt: skip
    missing = str(tmp_path / "c")
    done = run("-m", "nrdm_jax.compare", runs[0], missing, path=no_jax)
    assert done.returncode == 2 and f"{missing} is no run" in done.stderr
    done = run("-m", "nrdm_jax.compare", path=no_jax)
    assert done.returncode == 2 and "no run is given" in done.stderr


@pytest.mark.parametrize(
    ("text", "values"), [("3", [3]), ("0-2,7", [0, 1, 2, 7]), (" 1 , 2-2", [1, 2])]
)
def test_numbers_and_ranges(text, values):
    assert command_line.integers("seeds", text) == values


@pytest.mark.parametrize("text", ["", "a", "3-1", "-1", "1,,2"])
def test_wrong_numbers_name_the_flag(text):
    with pytest.raises(ValueError, match="--seeds"):
        command_line.integers("seeds", text)


def test_dry_run_of_dit_xl_2_needs_no_data(tmp_path):
    environment = os.environ | {"XLA_FLAGS": jobs.UNOPTIMIZED}
    done = subprocess.run(
        [sys.executable, "-m", "nrdm_jax.train", "--config=configs/imagenet256_dit_xl2.py",
         f"--workdir={tmp_path / 'w'}", "--dry_run", "--config.train.ema_widths=(0.1,)"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1].removeprefix("RESULT "))
    assert found["parameters"] == 674834720
    # Weights, two averages, two moments: all that the step is given, but for a batch.
    assert 0 <= found["argument_bytes"] - found["state_bytes"] < 2**27
    assert abs(found["state_bytes"] / (5 * 4 * 674834720) - 1) < 1e-5
    assert "stack/blocks/attention/alpha/kernel" in done.stdout and "mesh: " in done.stdout
    assert not (tmp_path / "w").exists()


def test_five_lines_of_the_readme():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        done = run("-c", textwrap.dedent(block))
        assert done.returncode == 0, done.stderr
    assert len(blocks[0].strip().splitlines()) <= 8 and "(2, 32, 32, 3)" in done.stdout
