"""What happens after a step: each hook one concern, called in order by the loop."""

import json
import os
import pathlib
from collections.abc import Callable

import jax
import numpy as np
import optax

from nrdm_jax.checkpointing.errors import CannotBegin
from nrdm_jax.checkpointing.manager import Checkpoints
from nrdm_jax.processes import distributed
from nrdm_jax.signatures import Metrics, Params
from nrdm_jax.training import charts, sensitivity
from nrdm_jax.training.goodput import Goodput
from nrdm_jax.training.metrics import (
    Ledger,
    MetricsWriter,
    Progress,
    read_metrics,
    step_line,
    warned_of,
)
from nrdm_jax.training.state import TrainState, save_items


class StepLog:
    """Every `every` steps: means since the last line, of the steps whose updates were not skipped,
    to the terminal and to the metrics files; and the account of the run's time. The steps' metrics
    say `images` and `flops` of each, 0 FLOPs where they are unknown. `counts` are those of the
    guard: of the run so far, and said where they are not 0."""

    def __init__(
        self,
        writer: MetricsWriter,
        progress: Progress,
        ledger: Ledger,
        schedule: optax.Schedule,
        *,
        goodput: Goodput,
        counts: Callable[[], dict[str, int]],
        every: int,
        last_step: int,
        devices: int,
        peak_flops: float | None,
    ):
        self._writer, self._progress, self._ledger = writer, progress, ledger
        self._schedule, self._every, self._last_step = schedule, every, last_step
        self._devices, self._peak = devices, peak_flops
        self._goodput, self._counts = goodput, counts
        self._pending: list[Metrics] = []
        self._data_wait = 0.0
        self._mark = ledger.productive()

    def __call__(self, step: int, state: TrainState, metrics: Metrics, data_wait: float) -> None:
        self._progress.advance()
        self._pending.append({name: value for name, value in metrics.items() if value.ndim == 0})
        self._data_wait += data_wait
        self._ledger.data_wait += data_wait
        if step % self._every and step != self._last_step:
            return
        rows = jax.device_get(self._pending)
        trained = [row for row in rows if row["finite"]] or rows
        values = {
            name: float(np.mean([row[name] for row in trained]))
            for name in rows[0].keys() - {"images", "flops", "finite"}
        }
        images, flops = (
            float(np.mean([row[name] for row in rows])) for name in ("images", "flops")
        )
        seconds = self._ledger.productive() - self._mark
        step_time = seconds / len(rows)
        line = {
            "loss": values.pop("loss"),
            "grad_norm": values.pop("grad_norm"),
            "lr": float(self._schedule(step - 1)),
            "step_time": step_time,
            "img/s": images / step_time,
        }
        if flops:
            line["TFLOP/s/chip"] = flops / step_time / self._devices / 1e12
        if flops and self._peak:
            line["MFU"] = flops / step_time / self._devices / self._peak
        line["data_wait"] = self._data_wait / seconds
        line["eta"] = (self._last_step - step) * step_time
        line["goodput"] = self._goodput.share()
        counts = self._counts()
        told = {name: count for name, count in counts.items() if count}
        self._progress.line(step_line(step, self._last_step, line | values | told))
        self._writer.write(step, line | values | counts)
        self._goodput.write()
        self._pending, self._data_wait, self._mark = [], 0.0, self._ledger.productive()


class Every:
    """Calls `action(step, state)` every `every` steps (0: never) and, if asked, at the last step;
    the ledger is charged with its time."""

    def __init__(
        self,
        action: Callable[[int, TrainState], None],
        ledger: Ledger,
        section: str,
        *,
        every: int,
        last_step: int | None = None,
    ):
        self._action, self._ledger, self._section = action, ledger, section
        self._every, self._last_step = every, last_step

    def __call__(self, step: int, state: TrainState, metrics: Metrics, data_wait: float) -> None:
        if (self._every and step % self._every == 0) or step == self._last_step:
            jax.block_until_ready(state.step)  # what the device still owes is the step's time
            with self._ledger.account(self._section):
                self._action(step, state)


class SensitivityLog:
    """Every `every` steps and at the last one: the sensitivity of each unit, the trunk's RMS and
    token-mean share there, to the metrics files and, now and then and at the end,
    workdir/sensitivity.png; an alarm on a jump.

    The step has measured them anyway: nothing is compiled for it.
    """

    RECORDS_A_CHART = 10
    MOST_RECORDS = 1024  # that are kept: a chart is not as wide, and runs last for weeks
    DIGITS = 5

    def __init__(
        self,
        workdir: pathlib.Path,
        writer: MetricsWriter,
        progress: Progress,
        ledger: Ledger,
        *,
        every: int,
        last_step: int,
    ):
        self._workdir, self._writer, self._progress = workdir, writer, progress
        self._ledger, self._every, self._last_step = ledger, every, last_step
        # Of this run so far, whichever processes did it.
        self._steps: list[int] = []
        self._records: dict[str, list[np.ndarray]] = {name: [] for name in charts.OF_UNITS}
        self._seen, self._stride = 0, 1  # records, of which so many-th is kept
        self._charted = 0  # how many of those the chart had
        # Of several processes one draws and says alarms.
        rows = read_metrics(workdir) if distributed.is_writer() else []
        rows = [row for row in rows if "profile" in row]
        for row in rows:
            self._remember(row["step"], row)
        self._charted = len(self._steps)
        self._alarm = sensitivity.Alarm()
        for row in rows[-self._alarm.records :]:
            self._alarm.check(*(np.asarray(row[name], np.float32) for name in charts.OF_UNITS))

    def _remember(self, step: int, row: dict) -> None:
        self._seen += 1
        if (self._seen - 1) % self._stride:
            return
        self._steps.append(step)
        for name, records in self._records.items():
            records.append(np.asarray(row[name], np.float32))
        if len(self._steps) > self.MOST_RECORDS:
            self._charted -= len(self._steps) // 2
            self._stride *= 2
            self._steps = self._steps[::2]
            self._records = {name: records[::2] for name, records in self._records.items()}

    def __call__(self, step: int, state: TrainState, metrics: Metrics, data_wait: float) -> None:
        if step % self._every and step != self._last_step:
            return
        profile, health = jax.device_get((metrics["profile"], metrics["health"]))
        with self._ledger.account("report"):
            self._report(step, profile, health)

    def _report(self, step: int, profile: np.ndarray, health: np.ndarray) -> None:
        share, rms = sensitivity.token_mean_share(health), sensitivity.trunk_rms(health)
        of_units = dict(zip(charts.OF_UNITS, (profile, share, rms), strict=True))
        self._remember(step, of_units)
        alarms = self._alarm.check(profile, share, rms)
        self._writer.write(
            step,
            {
                "sensitivity_slope": sensitivity.slope(profile),
                "token_mean_share_max": float(share.max()),
                "trunk_rms_max": float(rms.max()),
                "sensitivity_alarms": len(alarms),
                **({"alarms": alarms} if alarms else {}),
                **{name: _rounded(values, self.DIGITS) for name, values in of_units.items()},
            },
        )
        for text in alarms:
            self._progress.line(f"step={step} WARNING: {text}")
        if len(self._steps) - self._charted >= self.RECORDS_A_CHART or step == self._last_step:
            self._chart()

    def _chart(self) -> None:
        self._charted = len(self._steps)
        if not distributed.is_writer():
            return
        path = self._workdir / "sensitivity.png"
        with warned_of(f"{path} is not drawn"):
            charts.sensitivity_chart(path, self._steps, self._records)

    def close(self) -> None:
        """Draws what is not in the chart yet, as when the run ends before its last step."""
        if self._charted < len(self._steps):
            self._chart()


def _rounded(values: np.ndarray, digits: int) -> list[float]:
    return [float(f"{x:.{digits}g}") for x in values]


class Save:
    """Writes a checkpoint; `step` twice is written once, and so is `saved`, the step that the run
    was restored from."""

    def __init__(
        self, checkpoints: Checkpoints, meta: Callable[[int], dict], saved: int | None = None
    ):
        self._checkpoints, self._meta, self.saved = checkpoints, meta, saved

    def __call__(self, step: int, state: TrainState) -> None:
        if step != self.saved:
            self._checkpoints.save(step, save_items(state), self._meta(step))
            self.saved = step


class FailedSaves:
    """Tells of a checkpoint that could not be written, as soon as that is known: training goes on,
    and the next one may be. The last one's failure ends the run (exit code 74)."""

    def __init__(self, checkpoints: Checkpoints, progress: Progress):
        self._checkpoints, self._progress = checkpoints, progress

    def __call__(self, step: int, state: TrainState, metrics: Metrics, data_wait: float) -> None:
        what = self._checkpoints.failed()
        if what is not None:
            self._progress.line(f"step={step} WARNING: {what}")


class Snapshots:
    """Writes the power-function averages in float32, `count` times evenly over the run, the last
    time after its last step.

    What is written is committed when the next step begins, so that no checkpoint, here or after a
    kill, is later than a snapshot that is missing; but for those that could not be written, as on a
    disk that is full, which are told of.
    """

    def __init__(
        self,
        snapshots: Checkpoints,
        meta: Callable[[int], dict],
        ledger: Ledger,
        progress: Progress,
        *,
        count: int,
        last_step: int,
    ):
        self._snapshots, self._meta, self._ledger = snapshots, meta, ledger
        self._progress = progress
        self._count, self._last_step = count, last_step

    def __call__(self, step: int, state: TrainState, metrics: Metrics, data_wait: float) -> None:
        before, after = (s * self._count // self._last_step for s in (step - 1, step))
        if before < after:
            jax.block_until_ready(state.step)  # what the device still owes is the step's time
            with self._ledger.account("save"):
                try:
                    self._snapshots.save(step, {"averages": state.averages}, self._meta(step))
                    self._snapshots.wait()
                except CannotBegin:
                    raise
                except OSError as error:  # an average is then made from one less
                    self._progress.line(
                        f"step={step} WARNING: no snapshot of the averages: {error}"
                    )


class HeldoutLoss:
    """Writes the held-out losses of the EMA weights; the figures of `SAID`, where there are such,
    are said."""

    SAID = ("heldout_loss", "heldout_x0_error", "psnr")

    def __init__(
        self,
        evaluate: Callable[[Params], dict[str, float]],
        writer: MetricsWriter,
        progress: Progress,
    ):
        self._evaluate, self._writer, self._progress = evaluate, writer, progress

        self._last: tuple[int, dict[str, float]] = (-1, {})

    def at(self, step: int) -> dict[str, float]:
        """Of a step; nothing, where it was not the last that was evaluated."""
        return self._last[1] if self._last[0] == step else {}

    def __call__(self, step: int, state: TrainState) -> None:
        values = self._evaluate(state.ema)
        if not values:  # a signal came
            return
        self._last = (step, values)
        self._writer.write(step, values)
        said = " ".join(f"{name}={values[name]:.4f}" for name in self.SAID if name in values)
        self._progress.line(f"step={step} {said} (EMA weights)")


class SampleGrid:
    """Draws samples of the EMA weights into workdir/samples/step_N."""

    def __init__(
        self,
        draw: Callable[[Params, pathlib.Path], pathlib.Path | None],
        workdir: pathlib.Path,
        progress: Progress,
    ):
        self._draw, self._workdir, self._progress = draw, workdir, progress

    def __call__(self, step: int, state: TrainState) -> None:
        grid = self._draw(state.ema, self._workdir / "samples" / f"step_{step}")
        if grid is not None:
            self._progress.line(f"step={step} samples: {grid}")


class SampleScores:
    """Writes scores of samples of the EMA weights, and workdir/evals/step_N.json with their
    protocol; where there are none, with the `problem` that there was."""

    def __init__(
        self,
        evaluate: Callable[[Params], dict],
        workdir: pathlib.Path,
        writer: MetricsWriter,
        progress: Progress,
    ):
        self._evaluate, self._workdir = evaluate, workdir
        self._writer, self._progress = writer, progress

    @staticmethod
    def file(workdir: pathlib.Path, step: int) -> pathlib.Path:
        """Where the scores of a step are, once they are made."""
        return workdir / "evals" / f"step_{step}.json"

    def __call__(self, step: int, state: TrainState) -> None:
        result = self._evaluate(state.ema)
        if not result:  # not of this process to write
            return
        if values := result["scores"]:
            self._writer.write(step, values)
        file = self.file(self._workdir, step)
        partial = file.with_suffix(".partial")
        with warned_of(f"{file} is not written"):
            file.parent.mkdir(exist_ok=True)
            partial.write_text(json.dumps({"step": step, **result}, indent=2))
            os.replace(partial, file)
        words = " ".join(f"{name}={value:.4g}" for name, value in values.items())
        problem = f"WARNING: no scores: {result['problem']}" if "problem" in result else words
        self._progress.line(f"step={step} {problem} (EMA weights)")


class Profile:
    """A profiler trace of `steps` steps after the step `start`, into workdir/profile."""

    def __init__(self, workdir: pathlib.Path, start: int, steps: int):
        self._directory, self._start, self._stop = workdir / "profile", start, start + steps
        self._running = False

    def __call__(self, step: int, state: TrainState, metrics: Metrics, data_wait: float) -> None:
        if step == self._start:
            jax.block_until_ready(state.step)
            jax.profiler.start_trace(str(self._directory))
            self._running = True
        elif self._running and step == self._stop:
            jax.block_until_ready(state.step)
            self.close()

    def close(self) -> None:
        """Ends a trace that is still running, as when the run ends within it."""
        if self._running:
            self._running = False
            with warned_of(f"{self._directory} is not whole"):
                try:
                    jax.profiler.stop_trace()
                except RuntimeError as error:  # as the profiler calls a disk that is full
                    raise OSError(str(error)) from error
