"""Training at several shapes: a step that is compiled once for each, a run that can go on."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from nrdm_jax import build, programs, scoring, training_run
from nrdm_jax import config as configuration
from nrdm_jax.checkpointing.stored import StoredCheckpoints
from nrdm_jax.processes import lifecycle
from nrdm_jax.sharding.mesh import make_mesh
from nrdm_jax.training.metrics import read_metrics
from nrdm_jax.training.state import save_items

SHAPES = ((8, 8, 3), (4, 8, 3))


@pytest.fixture
def config(tiny_config):
    """Two shapes, in batches of 8 and 16."""
    c = tiny_config
    c.data.buckets, c.data.bucket_tokens = SHAPES, 32
    c.model.depth, c.model.width = 1, 16
    c.train.steps, c.log.every, c.log.sensitivity_every = 8, 4, 0
    c.checkpoint.every, c.evaluate.every = 4, 0
    configuration.validate(c)
    assert [configuration.batch_size(c, shape) for shape in SHAPES] == [8, 16]
    return c


@pytest.fixture
def parts_and_batches(config):
    parts = build.run(config)
    loader = build.bucket_loader(
        config, build.training_sources(config, "/nonexistent"), make_mesh(config.mesh)
    )
    return parts, loader


def test_a_step_a_shape_and_none_is_compiled_later(parts_and_batches):
    parts, loader = parts_and_batches
    steps = programs.Steps(parts, np.dtype("uint8"))
    state, images, flops = parts.fresh_state(), [], []
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "lowered_step", None)  # what compiles
        for _, batch in zip(range(6), loader.iterate(0)):  # noqa: B905
            state, metrics = steps(state, batch)
            images.append(int(metrics["images"]))
            flops.append(float(metrics["flops"]))
    assert set(images) == {8, 16} and int(state.images) == sum(images)
    # Twice the tokens are less than twice the work: the condition is projected once an example.
    of_size = {count: flop / count for count, flop in zip(images, flops, strict=True)}
    assert 1.5 < of_size[8] / of_size[16] < 2
    assert sum(images) == loader.position_after(0, 6)
    wrong = {name: value[:, :2] if name == "x" else value for name, value in batch.items()}
    for other in (wrong, batch | {"label": batch["label"][:4]}):
        with pytest.raises(TypeError):
            steps(state, other)


def train(config, workdir):
    with lifecycle.Signals().installed() as signals:
        return training_run.train(config, str(workdir), signals=signals, allow_config_change=True)


def restored(config, workdir, step):
    checkpoints = StoredCheckpoints(str(workdir / "checkpoints"))
    try:
        items = checkpoints.restore(step, save_items(build.run(config).abstract_state))
        return items, checkpoints.meta(step)
    finally:
        checkpoints.close()


@pytest.mark.slow
def test_a_run_of_buckets_goes_on_bit_for_bit(config, tmp_path, capsys):
    train(config, tmp_path / "whole")
    out = capsys.readouterr().out
    assert "bucket    records   batch  steps an epoch" in out and "4x8x3" in out
    half = config.copy_and_resolve_references()
    half.train.steps = 4
    train(half, tmp_path / "halves")
    train(config, tmp_path / "halves")
    (whole, meta), (halves, same) = (restored(config, tmp_path / w, 8) for w in ("whole", "halves"))
    for a, b in zip(*map(jax.tree.leaves, (whole, halves)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert meta["records_seen"] == same["records_seen"] == int(whole["loop"]["images"])
    rows = read_metrics(tmp_path / "halves")
    assert rows[-1]["images"] == meta["records_seen"] != 8 * config.train.batch_size
    assert {row["step"] for row in rows} == {4, 8}
    # What was trained at two shapes is drawn at either, and at others.
    for shape in ((4, 8, 3), (8, 12, 3)):
        with lifecycle.Signals().installed() as signals:
            _, x = scoring.draw(config, str(tmp_path / "whole"), tmp_path / "drawn", seeds=[0, 1],
                                steps=2, shape=shape, signals=signals)  # fmt: skip
        assert x.shape == (2, *shape) and np.isfinite(x).all()
        manifest = json.loads((tmp_path / "drawn" / "manifest.json").read_text())
        assert manifest["shape"] == list(shape)


@pytest.mark.slow
def test_one_device_and_eight_train_alike(config, monkeypatch, fill_zeros):
    """The losses at each shape, on any mesh that divides its batches."""
    config.data.bucket_multiple = 8
    found = []
    devices = jax.devices()
    for count in (1, 8):
        monkeypatch.setattr(jax, "devices", lambda *_, count=count: devices[:count])
        parts = build.run(config)
        records = build.training_sources(config, "/nonexistent")
        loader = build.bucket_loader(config, records, parts.mesh)
        state, step = parts.fresh_state(), jax.jit(parts.train_step)
        filled = fill_zeros(jax.device_get(state.params), jax.random.key(7))
        placed = jax.tree.map(jax.device_put, filled, jax.tree.map(lambda p: p.sharding,
                              state.params))  # fmt: skip
        state = dataclasses.replace(state, params=placed)
        losses = []
        for _, batch in zip(range(4), loader.iterate(0)):  # noqa: B905
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
        found.append(losses)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


def test_another_batch_size_is_told_with_what_it_does(config):
    sizes = {"batch_sizes": configuration.batch_sizes(config), "batch_size": 16}
    meta = {"step": 4, "position": 48} | sizes
    assert sizes["batch_sizes"] == [8, 16] and not configuration.other_batch_size(config, meta)
    assert not configuration.other_batch_size(config, {"step": 4, "batch_size": 16})  # an older one
    config.data.bucket_tokens = 64
    told = configuration.other_batch_size(config, meta)
    assert told.startswith("batch size 8, 16 -> 16, 32: the data go on from record 48 of the order")
    assert "buckets are mixed anew" in told and "EMA" not in told  # its images are counted
    config.data.buckets, config.train.batch_size = (), 32
    told = configuration.other_batch_size(config, {"step": 4, "position": 48, "batch_size": 16})
    assert "batch size 16 -> 32" in told and "from step 4 of 8" in told and "buckets" not in told
    assert "half-life of 500000 images" in told


@pytest.mark.slow
def test_another_batch_size_goes_on_by_the_records_seen(tiny_config, tmp_path, capsys):
    config = tiny_config
    config.model.depth, config.evaluate.every = 1, 0
    config.train.steps, config.log.every = 3, 1
    train(config, tmp_path)
    config.train.batch_size, config.train.steps = 8, 5
    configuration.validate(config)
    train(config, tmp_path)
    assert "batch size 16 -> 8: the data go on from record 48" in capsys.readouterr().err
    _, meta = restored(config, tmp_path, 5)
    assert meta["records_seen"] == meta["position"] == 3 * 16 + 2 * 8
    assert [row["images"] for row in read_metrics(tmp_path) if "loss" in row] == [
        16, 32, 48, 56, 64,
    ]  # fmt: skip


def test_a_mesh_that_does_not_divide_a_batch_names_the_field(config):
    config.data.bucket_multiple = 4
    config.data.bucket_tokens = 4 * 4
    with pytest.raises(ValueError, match=r"micro-batches of 4, not divisible by the 8 parts"):
        build.run(config)
