"""What is given to `nrdm sample` as captions, and how several processes end it."""

import os
import subprocess
import sys

import pytest

from benchmarks import jobs
from nrdm_jax import sample


def test_captions_are_parts_or_lines(tmp_path):
    assert sample.captions("a red car; a blue fish;") == ["a red car", "a blue fish", ""]
    file = tmp_path / "texts.txt"
    file.write_text("one;two\n\nné\n", encoding="utf-8")
    assert sample.captions(str(file)) == ["one;two", "", "né"]
    assert sample.captions("x" * 5000) == ["x" * 5000]  # too long for a name


def test_files_that_are_none_are_no_captions(tmp_path):
    file = tmp_path / "texts.txt"
    with pytest.raises(ValueError, match=r"--captions: there is no file .*texts.txt"):
        sample.captions(str(file))
    file.write_text("")
    with pytest.raises(ValueError, match="is empty"):
        sample.captions(str(file))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="cannot be read"):
        sample.captions(str(file))


DRAWS = """
import pathlib, sys, time, types
from nrdm_jax.processes import distributed, lifecycle

port, process, out = sys.argv[1:]
sys.argv = sys.argv[:1]

def main():
    distributed.FAREWELL = 5
    distributed.start(f"127.0.0.1:{port}", 2, int(process))
    from nrdm_jax import build, scoring
    from nrdm_jax.config import default

    c = default()
    c.data.name, c.data.shape, c.data.num_classes = "synthetic", (8, 8, 3), 4
    c.model.depth, c.model.width, c.model.heads, c.model.patch = 2, 32, 2, (4,)
    ema = build.run(c).fresh_state().ema
    own = types.SimpleNamespace(read=lambda abstract: ema, step=1)
    scoring.run_weights.find = lambda workdir, width: own
    write = scoring.writers.write_samples

    def slowly(*given, **named):
        time.sleep(2 * distributed.FAREWELL)
        return write(*given, **named)

    scoring.writers.write_samples = slowly
    with lifecycle.Signals().installed() as signals:
        scoring.draw(c, out, pathlib.Path(out), seeds=[0, 1], steps=1, signals=signals)

lifecycle.launch(main, "")
"""


def test_none_leaves_before_the_samples_are_written(tmp_path):
    """Whoever has left waits for the others for a farewell's time, and then all are ended."""
    port = jobs.free_port()
    flags = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", DRAWS, str(port), str(i), str(tmp_path / "out")],
            env=dict(os.environ, XLA_FLAGS=flags), stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert (tmp_path / "out" / "manifest.json").exists()
    assert "warning" not in "".join(said)
