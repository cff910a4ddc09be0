"""Several real processes on loopback are one job."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from benchmarks import jobs
from nrdm_jax import build, run_weights
from nrdm_jax import config as configuration
from nrdm_jax.processes import distributed, lifecycle
from nrdm_jax.processes.exit_codes import Stop
from nrdm_jax.processes.stored_config import changes, read_config
from nrdm_jax.training.metrics import read_metrics

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = f"--config={ROOT}/configs/openmoji32.py:smoke"
PROCESSES = 2
BATCH = 16  # of the smoke job
CLUSTERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES",
            "MEGASCALE_NUM_SLICES")  # fmt: skip


def environment(devices, data_dir):
    return jobs.variables(devices, optimized=False) | {"TFDS_DATA_DIR": data_dir}


def start(workdir, data_dir, processes, *flags):
    """The smoke job of 8 devices, over so many processes, each one's lines in a file."""
    command = [sys.executable, "-m", "nrdm_jax.train", CONFIG, f"--workdir={workdir}",
               "--config.model.depth=2", "--config.log.every=1",
               "--config.evaluate.examples=32", "--config.mesh.fsdp=4", *flags]  # fmt: skip
    commands = [[*command, *given] for given in jobs.meeting(processes)]
    logs = [pathlib.Path(f"{workdir}.{i}.log") for i in range(processes)]
    return jobs.start(commands, logs, environment(8 // processes, data_dir))


def wait(workdir, started):
    codes = [process.wait(timeout=400) for process in started]
    logs = [pathlib.Path(f"{workdir}.{i}.log").read_text() for i in range(len(started))]
    return codes, logs


def snapshots_of(workdir, width):
    """{step: all numbers of the average of that width}"""
    abstract = build.run(configuration.from_dict(read_config(workdir))).abstract_state.ema
    return {
        step: np.concatenate([
            np.ravel(leaf) for leaf in jax.tree.leaves(
                run_weights.Stored(workdir / "ema_snapshots", step, width).read(abstract))
        ])
        for step in run_weights.steps_of(str(workdir), "ema_snapshots")
    }  # fmt: skip


AVERAGED = ("--config.train.ema_widths=(0.1,)", "--config.train.ema_snapshots=2")


def test_two_processes_train_what_one_does(tmp_path, data_dir):
    losses, snapshots = {}, {}
    for processes in (1, PROCESSES):
        workdir = tmp_path / str(processes)
        started = start(workdir, data_dir, processes, "--config.train.steps=4", *AVERAGED)
        codes, logs = wait(workdir, started)
        assert codes == [0] * processes, logs
        rows = read_metrics(workdir)
        losses[processes] = [row["loss"] for row in rows if "loss" in row]
        losses[processes] += [row["heldout_loss"] for row in rows if "heldout_loss" in row]
        snapshots[processes] = snapshots_of(workdir, 0.1)
    assert len(losses[1]) == 6
    assert list(snapshots[1]) == list(snapshots[PROCESSES]) == [2, 4]
    for step, wanted in snapshots[1].items():
        np.testing.assert_allclose(snapshots[PROCESSES][step], wanted, atol=1e-5)
    np.testing.assert_allclose(losses[PROCESSES], losses[1], rtol=1e-5)
    # One prints and writes; the RESULT is said once.
    assert "RESULT" in logs[0] and "RESULT" not in logs[1]


@pytest.mark.slow
def test_a_single_process_goes_on_with_what_several_have_saved(tmp_path, data_dir):
    workdir = tmp_path / "run"
    for processes, steps in ((PROCESSES, 4), (1, 5)):
        started = start(workdir, data_dir, processes, f"--config.train.steps={steps}", *AVERAGED,
                        "--allow_config_change")  # fmt: skip
        codes, logs = wait(workdir, started)
        assert codes == [0] * processes, logs
    assert "restored step 4" in logs[0]
    assert list(snapshots_of(workdir, 0.1)) == [2, 4, 5]


@pytest.mark.slow
def test_sigterm_to_one_stops_all_at_one_step(tmp_path, data_dir):
    workdir = tmp_path / "run"
    started = start(workdir, data_dir, PROCESSES, "--config.train.steps=2000",
                    "--config.evaluate.every=0")  # fmt: skip
    log = pathlib.Path(f"{workdir}.0.log")
    deadline = time.monotonic() + 300
    while "step=5/" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.2)
    started[1].send_signal(signal.SIGTERM)
    codes, logs = wait(workdir, started)
    assert codes == [75, 75], logs
    assert "SIGTERM: saved step" in logs[0]
    steps = [int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]
    assert f"saved step {max(steps)} of 2000" in logs[0]


@pytest.mark.slow
def test_two_processes_go_back_as_one_does(tmp_path, data_dir):
    """From a bad batch after a save, and from the next one before another was made: of what was
    trained on since that save nothing is in the state."""
    flags = ("--config.train.steps=10", "--config.checkpoint.every=3", "--config.evaluate.every=0",
             "--config.guard.action=rollback", "--config.guard.most_in_a_row=1",
             "--fault=nan@step=5,nan@step=6")  # fmt: skip
    losses, said = {}, {}
    for processes in (1, PROCESSES):
        workdir = tmp_path / str(processes)
        codes, logs = wait(workdir, start(workdir, data_dir, processes, *flags))
        assert codes == [0] * processes, logs
        losses[processes] = {r["step"]: r["loss"] for r in read_metrics(workdir) if "loss" in r}
        said[processes] = [x for x in logs[0].splitlines() if "WARNING: rollback" in x]
    assert [line.split(": ", 2)[2] for line in said[1]] == [
        f"restored step 3; records {3 * BATCH} to {5 * BATCH - 1} of the order are left out",
        f"restored step 3; records {3 * BATCH} to {8 * BATCH - 1} of the order are left out",
    ]
    assert said[PROCESSES] == said[1]
    assert sorted(losses[1]) == list(range(1, 11))
    np.testing.assert_allclose(
        [losses[PROCESSES][step] for step in range(1, 11)],
        [losses[1][step] for step in range(1, 11)], rtol=1e-5,
    )  # fmt: skip


LOSSES = {
    "kill@step=5:rank=1": ([71, -9], "process 1 has not been heard of for"),
    "kill@step=5:rank=0": ([-9, 71], "process 0, the coordinator, has ended"),
    "hang@step=5:rank=1": ([71, 71], "nothing has happened in section step for"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", LOSSES)
def test_a_process_that_is_lost_or_hangs_ends_the_others_with_71(fault, tmp_path, data_dir):
    workdir = tmp_path / "run"
    flags = (f"--fault={fault}", "--config.train.steps=100000", "--config.evaluate.every=0",
             "--config.watchdog.step=30", "--config.watchdog.data=30")  # fmt: skip
    codes, logs = wait(workdir, start(workdir, data_dir, PROCESSES, *flags))
    wanted, says = LOSSES[fault]
    assert codes == wanted, logs
    assert all(f"error: {says}" in log for log, code in zip(logs, codes, strict=True) if code == 71)
    if fault.startswith("hang"):
        stacks = (workdir / "stacks.1.txt").read_text()
        assert "section step" in stacks and "in hang" in stacks


@pytest.mark.parametrize("process", range(PROCESSES))
def test_a_process_whose_others_never_come_leaves_with_71(process, tmp_path):
    workdir = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "nrdm_jax.train", CONFIG, f"--workdir={workdir}",
         "--coordinator=127.0.0.1:9", f"--num_processes={PROCESSES}", f"--process_id={process}",
         "--start_timeout=2"],
        env=os.environ | environment(1, str(tmp_path)), capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 71, done.stderr
    assert "error: the other processes cannot be reached within 2 s" in done.stderr
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"coordinator": "localhost:1"}, "go together; give all"),
        ({"coordinator": "localhost:1", "num_processes": 2, "process_id": 2}, "give 0 to 1"),
    ],
)
def test_flags_of_processes_that_contradict_each_other(arguments, says):
    with pytest.raises(ValueError, match=says):
        distributed.start(**arguments)


def test_what_a_collective_raises_is_told_from_a_defect(monkeypatch, capsys):
    class Peers:
        def await_loss(self, seconds):
            return "process 1 has ended"

    said = "UNKNOWN: Gloo AllGather failed: Connection closed by peer\nand more"
    assert distributed.loss(RuntimeError(said)) is None  # of a process alone
    monkeypatch.setattr(distributed, "_peers", Peers())
    for kind in (RuntimeError, ValueError):
        code, message = distributed.loss(kind(said))
        assert code == 71 and message == f"process 1 has ended: {said.splitlines()[0]}"
    assert distributed.loss(ValueError("a shape of 3 axes")) is None
    assert distributed.loss(KeyError(said)) is None

    # Raised, as it seems, by a function of ours: jax leaves its own out of a traceback.
    def main(error):
        exec(compile("raise error", distributed.__file__, "exec"), {"error": error})

    assert lifecycle._run(lambda: main(ValueError(said)), "", ["train"], False) == 71
    assert "error: process 1 has ended: UNKNOWN: Gloo" in capsys.readouterr().err
    assert lifecycle._run(lambda: main(ValueError("no such width")), "", ["train"], False) == 2


class Coordinator:
    """jax's, of which two processes ask; what is not there is an error, as after the limit."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value):
        self.values[key] = value

    def key_value_delete(self, key):
        del self.values[key]

    def blocking_key_value_get(self, key, limit_ms):
        if key not in self.values:
            raise RuntimeError(f"DEADLINE_EXCEEDED: {key} after {limit_ms} ms")
        return self.values[key]


def test_what_each_tells_all_know_and_who_is_silent_ends_the_others(monkeypatch):
    client, me = Coordinator(), [1]
    monkeypatch.setattr(distributed, "_active", True)
    monkeypatch.setattr(distributed, "_client", lambda: client)
    monkeypatch.setattr("jax.process_index", lambda: me[0])
    monkeypatch.setattr("jax.process_count", lambda: 2)
    client.values["nrdm_jax/a/all"] = '[7, "b"]'
    assert distributed.agree("a", "b") == [7, "b"]  # process 1 has told, and hears
    me[0] = 0
    assert distributed.agree("a", {"x": (1, 2)}) == [{"x": [1, 2]}, "b"]  # as all get it: JSON
    assert client.values == {"nrdm_jax/a/all": '[{"x": [1, 2]}, "b"]'}
    with pytest.raises(Stop, match="process 1 told nothing for 3 s") as stopped:
        distributed.agree("c", 1, limit=3.0)
    assert stopped.value.exit_code == 71
    me[0] = 1
    with pytest.raises(Stop, match="process 0 told nothing for 4 s") as stopped:
        distributed.agree("d", 1, limit=4.0)
    assert stopped.value.exit_code == 71


def test_alone_nothing_is_started(monkeypatch):
    for name in CLUSTERS:
        monkeypatch.delenv(name, raising=False)
    assert distributed.cluster() is None
    distributed.start()
    assert not distributed.active() and distributed.is_writer()


@pytest.mark.parametrize(
    ("environment", "cluster"),
    [
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}, "slurm"),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # sbatch without srun
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "cloud_tpu"),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, "cloud_tpu"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "ompi"),
    ],
    ids=json.dumps,
)
def test_clusters_by_their_environment(monkeypatch, environment, cluster):
    for name in CLUSTERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert distributed.cluster() == cluster


def test_a_process_a_node_sees_all_its_gpus(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("SLURM_STEP_GPUS", raising=False)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
    assert distributed._gpus_of_node() == list(range(8))


def test_a_run_of_before_a_field_was_there_has_its_default(tmp_path):
    now = configuration.to_dict(configuration.default())
    old = json.loads(json.dumps(now))
    del old["mesh"]["tensor"], old["optim"]["name"], old["pipeline"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert changes(tmp_path, now, allowed=False) == []
    other = now | {"mesh": now["mesh"] | {"tensor": 2}}
    # Other devices train the same: it is told, and not refused.
    assert changes(tmp_path, other, allowed=False) == ["mesh.tensor: 1 -> 2"]
    with pytest.raises(ValueError, match="seed: 0 -> 1") as error:
        changes(tmp_path, other | {"seed": 1}, allowed=False)
    assert "mesh" not in str(error.value)
    # What this version does not know can be left behind, on request.
    (tmp_path / "config.json").write_text(json.dumps(old | {"later": 1}))
    assert changes(tmp_path, now, allowed=True) == ["later: 1 -> '(absent)'"]
