"""What the launch scripts would run on clusters that are not here."""

import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = "configs/nrdm_f_1000.py:v5p"


def run(command, **environment):
    return subprocess.run(
        shlex.split(command), cwd=ROOT, env=dict(os.environ, **environment), text=True,
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip


DRY = {
    "slurm": (f"bash launch/slurm.sbatch h100 {CONFIG} /w --config.seed=1", {"DRY_RUN": "1"}),
    "tpu_vm": (f"bash launch/tpu_vm.sh --dry_run pod zone v5p {CONFIG} /w --config.seed=1", {}),
    "local": (f"bash launch/local_multiprocess.sh --dry_run --processes=3 {CONFIG} --config.seed=1",
              {}),
}  # fmt: skip


@pytest.mark.parametrize("name", DRY)
def test_a_dry_run_prints_the_same_train_command(name):
    command, environment = DRY[name]
    done = run(command, **environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.replace("\\", "").strip().splitlines()
    assert len(lines) == (3 if name == "local" else 1)
    for line in lines:
        train = f"python -m nrdm_jax.train --config={CONFIG} --workdir="
        assert train in line and "--config.seed=1" in line.split(train)[1]
    if name == "local":
        assert all(f"--process_id={i} " in line for i, line in enumerate(lines))
    if name == "slurm":
        assert "latency_hiding" in done.stdout


TRAINS = """
import pathlib, sys, time
sys.path.insert(0, sys.argv[1])
from nrdm_jax.processes import exit_codes, lifecycle
from nrdm_jax.processes.exit_codes import Stop

ready = sys.argv[2] + [a for a in sys.argv if a.startswith("--process_id")][0]
sys.argv = sys.argv[:1]

def begins():
    pathlib.Path(ready).touch()
    time.sleep(60)

def polls():
    with lifecycle.Signals().installed() as life:
        life.unsaved = True
        pathlib.Path(ready).touch()
        while not life.stop_requested():
            time.sleep(0.01)
        raise Stop(exit_codes.PREEMPTED, f"{life.received}: saved")

lifecycle.launch(PART, "")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("part", ["begins", "polls"])
def test_ctrl_c_stops_the_processes_of_a_terminal_once(part, number, tmp_path):
    """It comes to the script and to all that it has started; a SIGTERM to the script alone."""
    launch, ready = tmp_path / "launch", tmp_path / "ready"
    launch.mkdir()
    (launch / "local_multiprocess.sh").write_text(
        (ROOT / "launch" / "local_multiprocess.sh").read_text()
    )
    (launch / "environment.sh").write_text("make_environment() { :; }")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} main.py {ROOT} {ready} "$@"\n')
    python.chmod(0o755)
    (tmp_path / "main.py").write_text(TRAINS.replace("PART", part))
    script = subprocess.Popen(
        ["bash", "launch/local_multiprocess.sh", "a.py"], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, start_new_session=True,
        env=dict(os.environ, PATH=f"{tmp_path}:{os.environ['PATH']}"),
    )  # fmt: skip
    wanted = {f"ready--process_id={i}" for i in range(2)}
    while not wanted <= {p.name for p in tmp_path.iterdir()} and script.poll() is None:
        time.sleep(0.05)
    if number == signal.SIGINT:
        os.killpg(script.pid, number)
    else:
        script.send_signal(number)
    out, _ = script.communicate(timeout=30)
    assert script.returncode == 75, out
    logs = [(tmp_path / "runs" / "a-2-processes" / f"process_{i}.log").read_text() for i in (0, 1)]
    says = "saved" if part == "polls" else "nothing was left to save"
    assert all(says in log and "again" not in log for log in logs), logs


@pytest.mark.parametrize("script", ["slurm.sbatch", "tpu_vm.sh", "gke.sh", "local_multiprocess.sh"])
def test_too_few_arguments_are_exit_2_with_the_usage(script):
    done = run(f"bash launch/{script}")
    assert done.returncode == 2 and "error:" in done.stderr


def test_an_unknown_generation_is_exit_2():
    done = run(f"bash launch/tpu_vm.sh --dry_run pod zone v9 {CONFIG} /w")
    assert done.returncode == 2 and "no flags are known for v9" in done.stderr


def test_own_flags_come_last():
    done = run(DRY["slurm"][0], DRY_RUN="1", XLA_FLAGS="--xla_mine=true")
    assert re.search(r"XLA_FLAGS='--xla_gpu\S+ --xla_mine=true'", done.stdout)


@pytest.mark.parametrize(("topology", "hosts", "chips"), [("4x4x4", 16, 4), ("2x2x1", 1, 4)])
def test_the_jobset_is_filled_in(topology, hosts, chips):
    done = run("bash launch/gke.sh --dry_run --slices=2 --claim=disk job image v5p "
               f"{topology} {CONFIG} /runs/w --config.seed=1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "${" not in done.stdout
    jobset = yaml.safe_load(done.stdout)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = jobset["spec"]["replicatedJobs"]
    assert job["replicas"] == 2
    spec = job["template"]["spec"]
    assert spec["completions"] == spec["parallelism"] == hosts
    # What is started again without a count.
    rule, lost = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [75]
    assert lost["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert rule["action"] == lost["action"] == "FailJob"
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
    (container,) = pod["containers"]
    assert container["name"] == rule["onExitCodes"]["containerName"]
    assert container["command"] + container["args"] == [
        "python", "-m", "nrdm_jax.train", f"--config={CONFIG}", "--workdir=/runs/w",
        "--config.seed=1",
    ]  # fmt: skip
    (volume,), (mount,) = pod["volumes"], container["volumeMounts"]
    assert volume["persistentVolumeClaim"]["claimName"] == "disk"
    assert volume["name"] == mount["name"] and mount["mountPath"] == "/runs"
    assert container["resources"]["limits"]["google.com/tpu"] == chips


def test_skypilot_s_file_is_whole():
    task = yaml.safe_load((ROOT / "launch" / "skypilot.yaml").read_text())
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    used = set(re.findall(r"\$\{?(\w+)", task["run"])) - {"coordinator"}
    known = {"SKYPILOT_NODE_IPS", "SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK"}
    assert used - known <= task["envs"].keys() and known <= used
    assert "-m nrdm_jax.train" in task["run"]
    assert (ROOT / task["envs"]["CONFIG"].split(":")[0]).exists()


def test_preemption_is_told_from_failure(tmp_path):
    """75 queues a SLURM job again, and what one that was killed or hung leaves so many times; not
    what is wrong with the job: then the others leave with 71, and srun with the highest."""
    checkpoints = tmp_path / "runs" / "checkpoints"
    for codes, restarts, ends, again, *saved in (
        ((75, 75), 0, 75, True), ((75, 75), 500, 75, True), ((71, 71), 99, 71, True),
        ((71, 71), 100, 71, False), ((137, 71), 99, 137, True), ((137, 71), 100, 137, False),
        ((65, 71), 0, 65, False), ((1, 71), 0, 1, False), ((71, 74), 0, 74, False),
        ((0, 0), 0, 0, False), ((1, 71), 0, 1, True, 9), ((1, 1), 100, 1, False, 10),
        ((1, 70), 0, 70, False, 11), ((71, 1), 3, 1, False),
    ):  # fmt: skip
        says = "".join(
            f"echo 'srun: error: node{i}: task {i}: Exited with exit code {code}' >&2; "
            for i, code in enumerate(codes)
            if 0 < code < 128
        )
        saves = " ".join(f"mkdir -p {checkpoints}/{step};" for step in saved)
        srun = f"echo 'error: Exited with exit code 2' >&2; {saves} {says} exit {max(codes)}"
        for name, text in (("srun", srun), ("scontrol", "echo $* > requeued")):
            script = tmp_path / name
            script.write_text(f"#!/bin/sh\n{text}\n")
            script.chmod(0o755)
        (tmp_path / "launch").mkdir(exist_ok=True)
        (tmp_path / "launch" / "accelerator_flags.sh").write_text(
            (ROOT / "launch" / "accelerator_flags.sh").read_text()
        )
        done = run(
            f"bash {ROOT}/launch/slurm.sbatch h100 {CONFIG} {tmp_path}/runs",
            SLURM_SUBMIT_DIR=str(tmp_path), SLURM_JOB_ID="7", SLURM_RESTART_COUNT=str(restarts),
            PATH=f"{tmp_path}:{os.environ['PATH']}",
        )  # fmt: skip
        assert done.returncode == ends and "error: Exited" in done.stderr
        requeued = tmp_path / "requeued"
        assert requeued.exists() == again
        if again:
            assert requeued.read_text() == "requeue 7\n"
            requeued.unlink()


def test_a_tpu_s_job_is_started_again_until_it_ends_otherwise(tmp_path):
    """gcloud ends with the exit codes in the file, one after the other."""
    codes = tmp_path / "codes"
    (tmp_path / "gcloud").write_text(
        f'#!/bin/sh\ncode=$(head -n 1 {codes}); sed -i 1d {codes}; exit "$code"\n'
    )
    (tmp_path / "gcloud").chmod(0o755)
    for each, ends in (([75, 71, 75, 0], 0), ([71, 1, 71], 71), ([75, 70], 70)):
        codes.write_text("".join(f"{code}\n" for code in each))
        done = run(
            f"bash {ROOT}/launch/tpu_vm.sh pod zone v5p {CONFIG} /w",
            PATH=f"{tmp_path}:{os.environ['PATH']}", PAUSE="0", MOST_RESTARTS="2",
        )  # fmt: skip
        assert done.returncode == ends, done.stdout + done.stderr
        assert codes.read_text() == ""
