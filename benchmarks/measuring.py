"""What benchmarks share."""

import importlib.util
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from absl import flags

from nrdm_jax.command_line import print_result
from nrdm_jax.processes.exit_codes import USAGE, Stop

__all__ = ["print_result", "require", "train", "train_lines"]


def require(*packages: str, extra: str) -> None:
    """Raises:
    Stop: a package is not installed; exit code 2, naming the extra.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise Stop(
            USAGE,
            f"{', '.join(missing)} not installed; "
            f"bash launch/local.sh --setup-only --extras={extra}",
        )


def paired_seconds(
    one: Callable[[], object], other: Callable[[], object], pairs: int, untimed: bool = True
) -> list[tuple[float, float]]:
    """Seconds of one and of the other, in alternated pairs, printed as they come. Each turn is an
    untimed step and a timed one: a step that comes after another program's is slower than one after
    its like. Without the untimed one, for turns that are long beside their start."""
    found = []
    for pair in range(pairs):
        seconds = {}
        for i, step in ((1, other), (0, one)) if pair % 2 else ((0, one), (1, other)):
            if untimed:
                step()
            before = time.perf_counter()
            step()
            seconds[i] = time.perf_counter() - before
        found.append((seconds[0], seconds[1]))
        print(f"pair {pair}: {seconds[0]:.3f} s, {seconds[1]:.3f} s", flush=True)
    return found


def placed_batch(parts) -> dict:
    """A batch of normal numbers, labels and texts of any length for the train step, on the
    devices."""
    import jax
    import numpy as np

    from nrdm_jax import build

    draw, data = np.random.default_rng(0), parts.config.data
    shapes = build.abstract_batch(parts.config, parts.mesh, "float32")
    batch = {
        "x": draw.standard_normal(shapes["x"].shape, np.float32),
        "label": draw.integers(0, data.num_classes, shapes["label"].shape).astype(np.int32),
    }
    if parts.config.text.encoder != "none":
        named = "tokens" if "tokens" in shapes else "text_mask"
        length = shapes[named].shape[1]
        ends = draw.integers(0, length + 1, (len(batch["label"]), 1))
        mask = np.arange(length)[None, :] < ends
        if named == "tokens":
            batch["tokens"] = np.where(mask, draw.integers(1, 257, mask.shape), 0).astype(np.int32)
        else:
            batch["text_mask"] = mask
            for name in ("text", "text_pooled"):
                batch[name] = draw.standard_normal(shapes[name].shape, np.float32)
    return {name: jax.device_put(x, shapes[name].sharding) for name, x in batch.items()}


def train_command(workdir: pathlib.Path, *arguments: str) -> list[str]:
    """The train entry with --config of this benchmark, without evaluation and samples inside the
    run."""
    return [
        sys.executable, "-m", "nrdm_jax.train", f"--config={flags.FLAGS.config}",
        f"--workdir={workdir}", "--config.evaluate.every=0", "--config.sample.every=0",
        "--config.optim.warmup_steps=0", *arguments,
    ]  # fmt: skip


def train_lines(workdir: pathlib.Path, *arguments: str, **environment: str) -> Iterator[str]:
    """Runs it and yields its lines as they come.

    Raises:
      RuntimeError: it failed.
    """
    with subprocess.Popen(
        train_command(workdir, *arguments),
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ, **environment),
    ) as process:
        assert process.stdout
        yield from process.stdout
    if process.returncode:
        raise RuntimeError(f"the run ended with exit code {process.returncode}")


def train(workdir: pathlib.Path, *arguments: str, **environment: str) -> None:
    """Runs it to its end. Raises as `train_lines`."""
    for _ in train_lines(workdir, *arguments, **environment):
        pass
