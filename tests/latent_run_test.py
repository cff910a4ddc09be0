"""A diffusion in the latents of an autoencoder that a run here has trained: from the pixels to
samples that are pixels again."""

import dataclasses
import json
import pathlib
import shutil
import sys
import types

import jax
import numpy as np
import pytest

from benchmarks import jobs
from nrdm_jax import build, drawing, encoding, frozen_autoencoders, records, scoring, training_run
from nrdm_jax import config as configuration
from nrdm_jax.checkpointing.manager import Checkpoints
from nrdm_jax.data import latent_shards, latents
from nrdm_jax.data.sources import synthetic
from nrdm_jax.processes import distributed, exit_codes, lifecycle
from nrdm_jax.processes.exit_codes import Stop
from nrdm_jax.training.state import save_items

PIXELS, LATENTS = (8, 8, 3), (4, 4, 2)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """The workdir of a run of no steps, and its weights."""
    c = configuration.default()
    c.task, c.autoencoder.name = "autoencoder", "kl"
    c.data.name, c.data.shape, c.data.num_classes = "synthetic", PIXELS, 4
    c.autoencoder.width, c.autoencoder.channel_factors = 4, (1, 1)
    c.autoencoder.latent_channels = 2
    workdir = tmp_path_factory.mktemp("autoencoder")
    state = build.run(c).fresh_state()
    checkpoints = Checkpoints(str(workdir / "checkpoints"))
    checkpoints.save(1, save_items(state), {"data": "f"})
    checkpoints.wait()
    checkpoints.close()
    (workdir / "config.json").write_text(json.dumps(configuration.to_dict(c)))
    return workdir, state.ema


@pytest.fixture
def config(tiny_config, autoencoder):
    c = tiny_config
    c.data.shape, c.model.patch = LATENTS, (2,)
    c.autoencoder.name, c.autoencoder.weights = "kl", str(autoencoder[0])
    c.autoencoder.batch_size = 24  # divides neither the records nor a shard
    c.model.depth, c.train.steps, c.sample.steps, c.sample.examples = 1, 2, 2, 4
    c.log.sensitivity_every = 0
    configuration.validate(c)
    return c


def test_records_are_the_latents_of_the_pixels(config, autoencoder, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(latent_shards, "SHARD", 100)
    found = records.source(config, "train", str(tmp_path))
    assert found.shape == LATENTS and found.dtype == np.float32 and len(found) == 512
    pixels = synthetic(PIXELS, 4, "train")
    frozen = frozen_autoencoders.open_frozen(config)
    assert frozen.pixel_shape(LATENTS) == PIXELS
    jax.tree.map(np.testing.assert_array_equal, frozen.params, autoencoder[1]["autoencoder"])
    some = np.asarray([0, 99, 100, 511])
    mean, _ = frozen.encode(frozen.params, pixels.x[some] / np.float32(127.5) - 1)
    batch = found.gather(some)
    wanted = found.statistics.normed(np.asarray(mean))
    np.testing.assert_allclose(batch["x"], wanted, rtol=0.02, atol=0.05)
    np.testing.assert_array_equal(batch["label"], pixels.label[some])
    # Encoded once; what decodes samples is the way back.
    assert "encoding synthetic" in capfd.readouterr().out
    records.source(config, "heldout", str(tmp_path))
    assert "encoding" not in capfd.readouterr().out
    parts = build.run(config)
    to_pixels = records.to_pixels(config, parts.mesh, found.statistics)
    shown = to_pixels(batch["x"])
    decoded = np.asarray(frozen.decode(frozen.params, found.statistics.latents(batch["x"])))
    wanted = np.rint(np.clip((decoded + 1) * 127.5, 0, 255))
    assert shown.shape == (4, *PIXELS) and shown.dtype == np.uint8
    assert np.abs(shown - wanted).max() <= 1
    np.testing.assert_array_equal(to_pixels(batch["x"][None])[0], shown)  # previews
    other = dataclasses.replace(found.statistics, weights="other")
    with pytest.raises(ValueError, match=f"are now {frozen.fingerprint}, and .* are of other"):
        records.to_pixels(config, parts.mesh, other)
    assert records.pictures(config, "train", str(tmp_path), found).shape == PIXELS


def altered(autoencoder, workdir, group, **fields):
    """The same weights, opened as of a run with these fields."""
    shutil.copytree(autoencoder[0], workdir)
    values = json.loads((workdir / "config.json").read_text())
    values[group] |= fields
    (workdir / "config.json").write_text(json.dumps(values))
    c = configuration.default()
    c.autoencoder.name, c.autoencoder.weights = "kl", str(workdir)
    c.autoencoder.batch_size = 4
    return c, frozen_autoencoders.open_frozen(c)


def test_float_records_are_encoded_as_the_autoencoder_was_trained(autoencoder, config, tmp_path):
    frozen = frozen_autoencoders.open_frozen(config)
    c, scaled = altered(autoencoder, tmp_path / "scaled", "data", scale=0.25, shift=3.0)
    x = np.random.default_rng(0).normal(3, 4, (5, *PIXELS)).astype(np.float32)
    for found, wanted in zip(
        encoding.encoder(c)(x), frozen.encode(frozen.params, (x - 3) / 4), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert scaled.fingerprint != frozen.fingerprint


def test_originals_are_shown_as_the_network_sees_them(config):
    task = types.SimpleNamespace(original="x")
    config.data.scale, config.data.shift = 0.5, 3.0
    x = np.asarray([1.0, 3.0, 5.0, 9.0], np.float32).reshape(4, 1, 1, 1)
    found = records.originals(config, task, {"x": x})
    assert found.dtype == np.uint8 and found.ravel().tolist() == [0, 128, 255, 255]
    every = np.arange(256, dtype=np.uint8)  # pixels stay
    np.testing.assert_array_equal(records.originals(config, task, {"x": every}), every)
    assert records.originals(config, types.SimpleNamespace(original=""), {"x": x}) is None


def test_the_same_weights_in_another_network_are_others(autoencoder, config, tmp_path):
    frozen = frozen_autoencoders.open_frozen(config)
    _, same = altered(autoencoder, tmp_path / "same", "train", batch_size=8)
    _, grouped = altered(autoencoder, tmp_path / "grouped", "autoencoder", groups=2)
    assert same.fingerprint == frozen.fingerprint != grouped.fingerprint


def test_encoding_on_first_use_can_be_stopped_and_holds_up_few(config, tmp_path, monkeypatch):
    monkeypatch.setattr(latent_shards, "SHARD", 256)
    polls = []

    def stop():
        polls.append(len(polls))
        if len(polls) == 2:
            raise Stop(exit_codes.PREEMPTED, "SIGTERM")

    with pytest.raises(Stop):
        records.source(config, "heldout", str(tmp_path), stop)
    shards = [path.name for path in tmp_path.rglob("latents-*")]
    assert shards == ["latents-train.array_record-00000-of-00002"]
    # Of several processes the others would wait, and their polls are counted.
    monkeypatch.setattr(distributed, "_active", True)
    monkeypatch.setattr(encoding, "WHILE_OTHERS_WAIT", 575)
    with pytest.raises(ValueError, match="has 576 records, .* run `nrdm encode` first"):
        records.source(config, "heldout", str(tmp_path), stop)
    monkeypatch.setattr(encoding, "WHILE_OTHERS_WAIT", 576)
    assert len(records.source(config, "heldout", str(tmp_path), stop)) == 64
    assert len(polls) == 2


def test_captions_go_with_the_latents(config, tmp_path):
    config.text.encoder, config.text.length = "bytes", 24
    found = records.source(config, "train", str(tmp_path))
    pixels = synthetic(PIXELS, 4, "train")
    some = np.asarray([0, 5, 511])
    assert found.captions(some) == pixels.captions(some)
    batch = found.drawn(0)(some, some)
    assert set(batch) == {"x", "label", "tokens"} and batch["tokens"].shape == (3, 24)
    assert batch["x"].shape == (3, *LATENTS)
    # One set serves runs with and without captions, and those that are told nothing.
    config.text.encoder = "none"
    assert records.source(config, "train", str(tmp_path)).fingerprint != found.fingerprint
    config.data.with_class = False
    untold = records.source(config, "train", str(tmp_path))
    assert set(untold.drawn(0)(some, some)["label"]) == {pixels.num_classes}
    shown = records.pictures(config, "train", str(tmp_path), untold).gather(some)
    np.testing.assert_array_equal(shown["label"], pixels.label[some])
    assert len(list((tmp_path / "latents").iterdir())) == 1


def test_latents_of_other_weights_or_pixels_are_refused(config, tmp_path, monkeypatch):
    data = str(tmp_path / "data")
    sources = {s: encoding.pixels(config, s, data, streamed=True) for s in ("train", "heldout")}
    home = tmp_path / "encoded" / latents.VERSION
    encoding.bind(config, home, sources)
    assert encoding.write_shards(config, home, sources) == 2
    encoding.finish(config, home, sources)
    config.autoencoder.encoded = str(tmp_path / "encoded")
    assert len(records.source(config, "heldout", data)) == 64
    assert not (tmp_path / "data" / "latents").exists()
    config.data.num_classes = 3
    with pytest.raises(ValueError, match="has latents of other pixels than data.name=synthetic"):
        records.source(config, "heldout", data)
    config.data.num_classes = 4
    # Pixels that are not there are compared by the name of their set.
    monkeypatch.setattr(encoding, "_has_pixels", lambda config, data_dir: False)
    assert len(records.source(config, "heldout", data)) == 64
    config.data.name = "tfds:pictures"
    with pytest.raises(ValueError, match="is of data.name=synthetic, and data.name=tfds:pictures"):
        records.source(config, "heldout", data)
    monkeypatch.undo()
    assert not encoding._has_pixels(config, data)
    config.data.name = "synthetic"
    statistics = latents.Statistics.read(home / latents.STATISTICS)
    values = {**vars(statistics), "weights": "other"}
    (home / latents.STATISTICS).write_text(json.dumps(values))
    with pytest.raises(ValueError, match="latents of the weights other"):
        records.source(config, "heldout", data)
    config.data.shape = (4, 4, 3)
    with pytest.raises(ValueError, match=r"have 2 channels; give \(..., 2\)"):
        encoding.pixels(config, "train", data)


@pytest.mark.slow
def test_a_run_in_latents_ends_in_pictures(config, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    workdir = str(tmp_path / "run")
    config.sample.every = 2
    with lifecycle.Signals().installed() as signals:
        training_run.train(config, workdir, signals=signals)
        grid, x = scoring.draw(
            config, workdir, tmp_path / "out", seeds=[0, 1, 2], signals=signals, trajectory=2
        )
        scores = scoring.score(config, workdir, samples=4, signals=signals)
    assert grid.name == "grid.png" and x.shape == (3, *LATENTS)
    assert (pathlib.Path(workdir) / "samples" / "step_2" / "grid.png").exists()
    assert len(list((tmp_path / "out").glob("*_seed*.png"))) == 3
    assert (tmp_path / "out" / "trajectory.png").exists()
    assert np.isfinite(scores["wiener"]) and np.isfinite(scores["nearest_samples"])
    statistics = records.kept_statistics(config, workdir)
    source = records.source(config, "train", str(tmp_path / "data"))
    assert statistics == source.statistics and drawing.by_class(config)


def run_by_two(entry, log, *flags):
    """One of the package's entries as two processes of a device each; all must end well."""
    logs = [log.with_suffix(f".{i}") for i in range(2)]
    command = [sys.executable, "-m", f"nrdm_jax.{entry}", *flags]
    commands = [[*command, *given] for given in jobs.meeting(2)]
    jobs.finish(jobs.start(commands, logs, jobs.variables()), logs, 200)


@pytest.mark.slow
def test_two_processes_encode_train_and_sample(config, tmp_path, monkeypatch):
    """What only the writer does must hold no collective: reading the autoencoder is one."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    config.sample.every = 2
    values = configuration.to_dict(config)
    file = tmp_path / "config.py"
    file.write_text(
        "from nrdm_jax import config\n\n\ndef get_config():\n"
        f"    return config.from_dict({values!r})\n"
    )
    run_by_two("encode_dataset", tmp_path / "encode", f"--config={file}",
               f"--workdir={tmp_path / 'encoded'}")  # fmt: skip
    workdir = tmp_path / "run"
    encoded = f"--config.autoencoder.encoded={tmp_path / 'encoded'}"
    run_by_two("train", tmp_path / "train", f"--config={file}", f"--workdir={workdir}", encoded)
    assert (workdir / "samples" / "step_2" / "grid.png").exists()
    run_by_two("sample", tmp_path / "sample", f"--workdir={workdir}", "--seeds=0-2")
    assert len(list((workdir / "samples" / "final").glob("*_seed*.png"))) == 3
    run_by_two("evaluate", tmp_path / "evaluate", f"--workdir={workdir}", "--samples=4")
    assert (workdir / "evals" / "scores.json").exists()
