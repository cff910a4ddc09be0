"""What goes wrong on purpose goes wrong as it would, once, and nowhere else."""

import resource
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax import build, reports
from nrdm_jax.checkpointing.manager import Checkpoints
from nrdm_jax.processes import faults
from nrdm_jax.training.drill import DONE, Drill, flip, poisoned, spiking


def drill(workdir, plan, process=0, is_saving=lambda: False):
    return Drill(
        faults.parse(plan),
        workdir=workdir,
        process=process,
        checkpoints=workdir / "checkpoints",
        is_saving=is_saving,
    )


def test_without_a_plan_nothing_is_there(tmp_path):
    none = drill(tmp_path, "")
    batches, save = iter(()), lambda step, state: None
    assert none.hooks == [] and none.batches(batches, 0) is batches and none.saving(save) is save
    of_another = drill(tmp_path, "kill@step=1:rank=1")
    assert of_another.hooks == []
    assert not list(tmp_path.iterdir())


def test_the_batch_of_that_step_and_only_once(tmp_path):
    def found(first_step):
        batches = ({"x": jnp.full((2, 3), i, jnp.float32)} for i in range(4))
        return [bool(jnp.isnan(batch["x"]).all()) for batch in
                drill(tmp_path, "nan@step=7").batches(batches, first_step)]  # fmt: skip

    assert found(5) == [False, True, False, False]
    assert (tmp_path / DONE).read_text() == "process 0: nan@step=7\n"
    # The process that takes up the run does the step again, without it.
    assert found(5) == [False] * 4


def test_a_poisoned_batch_is_a_loss_of_nan_and_a_spiking_one_a_larger_loss(tiny_config, fill_zeros):
    tiny_config.mesh.data = 1
    parts = build.run(tiny_config, jax.devices()[:1])
    params = fill_zeros(parts.fresh_state().params, jax.random.key(1), 0.02)
    shapes = build.abstract_batch(tiny_config, parts.mesh, "uint8")
    size, draw = tiny_config.train.batch_size, np.random.default_rng(0)
    batch = {
        "x": draw.integers(100, 156, shapes["x"].shape).astype(np.uint8),
        "label": draw.integers(0, tiny_config.data.num_classes, size).astype(np.int32),
    }
    batch = {name: jax.device_put(x, shapes[name].sharding) for name, x in batch.items()}
    keys = jax.random.split(jax.random.key(0), size)
    loss = jax.jit(lambda batch: parts.task.objective(params, batch, keys)[0].mean())
    found = {}
    for name, change in (("plain", dict), ("nan", poisoned), ("spike", spiking)):
        changed = change(batch)
        for field, x in batch.items():
            y = changed[field]
            assert (y.shape, y.dtype, y.sharding) == (x.shape, x.dtype, x.sharding)
        found[name] = float(loss(changed))
    assert np.isnan(found["nan"])
    assert found["spike"] > 1.5 * found["plain"]


def test_the_save_fails_as_on_a_disk_that_is_full_and_the_next_does_not(tmp_path):
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"), keep=3)
    full = drill(tmp_path, "enospc@save=2", is_saving=checkpoints.is_saving)
    draw = np.random.default_rng(0)
    params = {"w": jnp.asarray(draw.standard_normal((512, 512), np.float32))}

    def write(step, state):
        checkpoints.save(step, {"params": state}, {"step": step})

    save, before = full.saving(write), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        save(1, params)
        checkpoints.wait()
        save(2, params)
        with pytest.raises(OSError, match="cannot be written"):
            checkpoints.wait()
        (tmp_path / "metrics.jsonl").write_text("lines still have room\n" * 100)
        full.settle(2)
    finally:
        left = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert left == before
    save(3, params)
    checkpoints.wait()
    checkpoints.close()
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    assert "1" in kept and "3" in kept and "2" not in kept


def test_one_bit_of_one_file_flips_once_it_is_committed(tmp_path):
    step = tmp_path / "checkpoints" / "9"
    saving = [True]
    flips = drill(tmp_path, "flip@step=9", is_saving=lambda: saving[0])
    flips.settle(8)
    step.mkdir(parents=True)
    (step / "small").write_bytes(bytes(10))
    (step / "large").write_bytes(bytes(1000))
    flips.settle(9)
    assert not any((step / "large").read_bytes())
    saving[0] = False
    flips.settle(10)
    flips.settle(11)
    bits = np.unpackbits(np.frombuffer((step / "large").read_bytes(), np.uint8))
    assert bits.sum() == 1 and not any((step / "small").read_bytes())
    flip(step)
    assert not any((step / "large").read_bytes())


def test_losses_that_a_signal_cut_off_are_owed(tmp_path):
    config = types.SimpleNamespace(
        evaluate=types.SimpleNamespace(every=10), train=types.SimpleNamespace(steps=25)
    )
    parts = types.SimpleNamespace(config=config)

    def owed(*steps):
        return [step for step in steps if reports.losses_owed(parts, tmp_path, step)]

    assert owed(0, 5, 10, 20, 25) == [0, 10, 20, 25]
    rows = ['{"step": 10, "loss": 1.0}', '{"step": 20, "heldout_loss": 1.0}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    assert owed(0, 10, 20, 25) == [0, 10, 25]
    config.evaluate.every = 0
    assert owed(0, 10, 25) == []
