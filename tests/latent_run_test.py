"""A diffusion in the latents of an autoencoder that a run here has trained: from the pixels to
samples that are pixels again."""

import json
import pathlib

import jax
import numpy as np
import pytest

from nrdm_jax import build, drawing, encoding, frozen_autoencoders, records, scoring, training_run
from nrdm_jax import config as configuration
from nrdm_jax.checkpointing.manager import Checkpoints
from nrdm_jax.data import latent_shards, latents
from nrdm_jax.data.sources import synthetic
from nrdm_jax.processes import lifecycle
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
    assert records.pictures(config, "train", str(tmp_path), found).shape == PIXELS


def test_captions_go_with_the_latents(config, tmp_path):
    config.text.encoder, config.text.length = "bytes", 24
    found = records.source(config, "train", str(tmp_path))
    pixels = synthetic(PIXELS, 4, "train")
    some = np.asarray([0, 5, 511])
    assert found.captions(some) == pixels.captions(some)
    batch = found.drawn(0)(some, some)
    assert set(batch) == {"x", "label", "tokens"} and batch["tokens"].shape == (3, 24)
    assert batch["x"].shape == (3, *LATENTS)
    # One set serves runs with and without captions.
    config.text.encoder = "none"
    assert records.source(config, "train", str(tmp_path)).fingerprint != found.fingerprint
    assert len(list((tmp_path / "latents").iterdir())) == 1


def test_latents_of_other_weights_are_refused(config, tmp_path):
    data = str(tmp_path / "data")
    sources = {s: encoding.pixels(config, s, data, streamed=True) for s in ("train", "heldout")}
    home = tmp_path / "encoded" / latents.VERSION
    assert encoding.write_shards(config, home, sources) == 2
    encoding.finish(config, home, sources)
    config.autoencoder.encoded = str(tmp_path / "encoded")
    assert len(records.source(config, "heldout", data)) == 64
    assert not (tmp_path / "data" / "latents").exists()
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
