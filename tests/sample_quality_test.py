"""Scores of samples: counted exactly, the same on any devices, their reference kept."""

import errno
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax import build, measures, training_run
from nrdm_jax import config as configuration
from nrdm_jax.data.sources import ArraySource
from nrdm_jax.evaluation import feature_sets, scores
from nrdm_jax.evaluation.feature_sets import FeatureSet
from nrdm_jax.evaluation.features import FeatureNet
from nrdm_jax.evaluation.networks.outputs import Outputs
from nrdm_jax.processes import exit_codes, lifecycle
from nrdm_jax.processes.exit_codes import NotFinite, Stop
from nrdm_jax.sample_quality import SampleQuality
from nrdm_jax.training.metrics import read_metrics


def linear_net(size, clips=False, features=5):
    """Features are random projections of the pixels: cheap, and known in numpy."""
    matrix = np.random.default_rng(0).normal(size=(size, features)) / size

    def apply(params, pixels):
        flat = pixels.reshape(len(pixels), -1)
        return Outputs(flat @ params, flat[:, :3], flat @ params[:, :2])

    return FeatureNet("linear", "0" * 16, "none", clips, jnp.float32(matrix), apply)


class Given:
    """In the place of a sampler: pixels that are known, the weights' number added."""

    batch_size = 6

    def __init__(self, pixels):
        self.pixels, self.labels = pixels, {}

    def __call__(self, params, seeds, given):
        self.labels |= dict(zip(seeds.tolist(), given["label"].tolist(), strict=True))
        return self.pixels[seeds] / 127.5 - 1.0


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(lifecycle, "cache_dir", lambda: tmp_path)
    return tmp_path / "references"


def quality(config, records, sampler, net, devices=8, **options):
    config = config.copy_and_resolve_references()
    config.data.shape = tuple(records.shape)
    parts = build.run(config, jax.devices()[:devices])
    return SampleQuality(parts, records, sampler, net, records, **options)


def source(shape, count=101, seed=1):
    draw = np.random.default_rng(seed)
    label = np.sort(draw.choice(4, count, p=[0.5, 0.3, 0.15, 0.05])).astype(np.int32)
    x = draw.integers(0, 256, (count, *shape)).astype(np.uint8)
    return ArraySource(x, label, num_classes=4, class_names=tuple("abcd"), fingerprint="f")


def test_scores_are_those_of_exactly_the_samples_and_the_reference(tiny_config, cache):
    records, net = source((8, 8, 3)), linear_net(8 * 8 * 3)
    pixels = np.random.default_rng(2).integers(0, 256, (45, 8, 8, 3)).astype(np.uint8)
    sampler = Given(pixels)
    metrics = ("fd", "sfd", "kid", "precision_recall", "inception_score")
    scorer = quality(tiny_config, records, sampler, net, metrics=metrics, samples=45, by_class=True)
    seen = []
    result = scorer(None, sink=lambda x, pixels, label: seen.append(pixels))
    np.testing.assert_array_equal(np.concatenate(seen), pixels)
    a, b = (x.reshape(len(x), -1).astype(np.float64) @ np.float64(net.params)
            for x in (pixels, records.x))  # fmt: skip
    root = np.linalg.svd(np.linalg.cholesky(np.cov(a.T)).T @ np.linalg.cholesky(np.cov(b.T)))[1]
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2)
    expected += np.trace(np.cov(a.T) + np.cov(b.T)) - 2 * root.sum()
    found = result["scores"]
    np.testing.assert_allclose(found["fd_linear"], expected, rtol=1e-4)
    assert {"sfd_linear", "kid_linear", "precision_linear", "recall_linear",
            "inception_score_linear"} <= found.keys()  # fmt: skip
    assert result["protocol"]["reference"]["examples"] == 101
    # The labels are in the proportions of the training set, and each class is scored.
    of_samples = np.bincount(list(sampler.labels.values()), minlength=4) / 45
    of_records = np.bincount(records.label, minlength=4) / 101
    np.testing.assert_allclose(of_samples, of_records, atol=1 / 45)
    assert sum(c["samples"] for c in result["classes"].values()) == 45
    assert set(result["classes"]) == set("abcd")


def test_samples_that_are_not_finite_are_no_scores(tiny_config, cache):
    records, net = source((8, 8, 3)), linear_net(8 * 8 * 3)
    pixels = np.full((12, 8, 8, 3), 127.5)
    pixels[9, 1, 2, 0] = np.nan
    with pytest.raises(NotFinite, match="samples 6 to 11 are not all finite") as caught:
        quality(tiny_config, records, Given(pixels), net, metrics=("fd",), samples=12)(None)
    assert caught.value.exit_code == exit_codes.NON_FINITE


def test_one_device_scores_as_eight_and_the_reference_is_kept(
    tiny_config, cache, monkeypatch, capsys
):
    records, net = source((8, 8, 3)), linear_net(8 * 8 * 3)
    pixels = np.random.default_rng(2).integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)

    def fd(devices=8):
        scorer = quality(
            tiny_config, records, Given(pixels), net, devices, metrics=("fd",), samples=20
        )
        return scorer(None)["scores"]["fd_linear"]

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(feature_sets.np, "savez", full)
        first = fd()
    assert not list(cache.iterdir()) and "are not kept in" in capsys.readouterr().err
    assert fd() == first
    (kept,) = cache.iterdir()
    kept.unlink()
    np.testing.assert_allclose(fd(devices=1), first, rtol=1e-5)
    # What is on disk is read: another reference there gives another distance.
    other = FeatureSet()
    other.add(np.random.default_rng(0).normal(size=(50, 5)) + 99, None, None, np.zeros(50))
    feature_sets.save(kept, other, {})
    assert fd() > 100 * first
    # A damaged one is made again.
    kept.write_bytes(kept.read_bytes()[:-200])
    np.testing.assert_allclose(fd(), first, rtol=1e-5)


def test_frames_of_clips_are_examples_of_a_network_of_pictures(tiny_config, cache):
    records, net = source((3, 8, 8, 3), 40), linear_net(8 * 8 * 3)
    pixels = np.random.default_rng(2).integers(0, 256, (10, 3, 8, 8, 3)).astype(np.uint8)
    c = tiny_config.copy_and_resolve_references()
    c.model.patch = (1, 4, 4)
    result = quality(c, records, Given(pixels), net, metrics=("fd",), samples=10)(None)
    frames, known = FeatureSet(), FeatureSet()
    for found, x in ((frames, pixels), (known, records.x)):
        flat = np.float32(x.reshape(-1, 8 * 8 * 3))
        found.add(flat @ np.float32(net.params), None, None, np.zeros(len(flat)))
    expected = scores.scores(frames, known, ("fd",), "linear")["fd_linear"]
    np.testing.assert_allclose(result["scores"]["fd_linear"], expected, rtol=1e-4)
    assert "each frame" in result["protocol"]["pixels"]
    clips = linear_net(3 * 8 * 8 * 3, clips=True)
    whole = quality(c, records, Given(pixels), clips, metrics=("fd",), samples=10)(None)
    assert "each frame" not in whole["protocol"]["pixels"]


@pytest.mark.slow
def test_a_run_scores_its_ema_every_so_many_images(tiny_config, cache, tmp_path, monkeypatch):
    c = tiny_config
    c.train.steps, c.evaluate.every, c.checkpoint.every = 5, 0, 5
    c.evaluate.metrics_every, c.evaluate.metrics, c.evaluate.samples = 20, ("fd", "kid"), 12
    c.sample.steps, c.sample.batch_size, c.log.sensitivity_every = 1, 8, 0
    monkeypatch.setattr(measures, "feature_net", lambda config: linear_net(8 * 8 * 3))
    signals, calls = lifecycle.Signals(), []
    score = SampleQuality.__call__

    def interrupted(self, params, poll):
        calls.append(poll)
        if len(calls) == 1:
            raise NotFinite("samples 0 to 7 are not all finite")
        signals.received = "SIGTERM" if len(calls) in (2, 4) else None
        return score(self, params, poll)

    monkeypatch.setattr(SampleQuality, "__call__", interrupted)
    # Two scorings end at signals, that of the last step as well; the next process makes them.
    for step in (4, 5):
        with pytest.raises(Stop, match=f"saved step {step} of 5"):
            training_run.train(c, str(tmp_path / "run"), signals=signals)
        signals.received = None
    training_run.train(c, str(tmp_path / "run"), signals=signals)
    rows = [r for r in read_metrics(tmp_path / "run") if "fd_linear" in r]
    # 20 images are two steps of 16; and at the end. Samples that are not finite end no run.
    assert [r["step"] for r in rows] == [4, 5] and all(r["scored_examples"] == 12 for r in rows)
    told = json.loads((tmp_path / "run" / "evals" / "step_2.json").read_text())
    assert told["scores"] == {} and "samples 0 to 7" in told["problem"]
    assert training_run.train(c, str(tmp_path / "run"), signals=signals)["finished_before"]
    assert len(calls) == 5
    last = json.loads((tmp_path / "run" / "evals" / "step_5.json").read_text())
    assert last["scores"]["fd_linear"] == rows[-1]["fd_linear"]
    assert last["protocol"]["samples"] == 12 and last["protocol"]["sampler"]["steps"] == 1


def test_what_cannot_be_scored_is_refused(tiny_config, cache):
    latents = ArraySource(
        np.zeros((20, 8, 8, 3), np.float32), np.zeros(20, np.int32), num_classes=4, fingerprint="f"
    )
    with pytest.raises(ValueError, match="are of pixels"):
        quality(tiny_config, latents, None, linear_net(192))
    with pytest.raises(ValueError, match="is of clips"):
        quality(tiny_config, source((8, 8, 3)), None, linear_net(192, clips=True))
    none = FeatureSet()
    none.add(np.eye(4), None, None, np.zeros(4, np.int32))
    for metric, missing in (("sfd", "no spatial"), ("inception_score", "no classifier")):
        with pytest.raises(ValueError, match=missing):
            scores.scores(none, none, (metric,), "x")


def test_kept_features_are_the_ones_asked_for_whatever_the_batches():
    x = np.random.default_rng(0).normal(size=(23, 3)).astype(np.float32)
    labels = np.arange(23, dtype=np.int32)
    for sizes in ((23,), (5, 7, 1, 10)):
        found = FeatureSet(kept=feature_sets.spread(6, 23))
        for start, size in zip(np.cumsum((0, *sizes)), sizes, strict=False):
            part = slice(start, start + size)
            found.add(x[part], None, x[part], labels[part])
        assert found.all_labels().tolist() == [0, 3, 7, 11, 15, 19] and found.count == 23
        np.testing.assert_array_equal(found.all_features(), x[[0, 3, 7, 11, 15, 19]])


def test_a_set_on_disk_is_the_same_set(tmp_path):
    found = FeatureSet()
    x = np.random.default_rng(0).normal(size=(9, 4))
    found.add(x, x[:, :2], None, np.arange(9))
    feature_sets.save(tmp_path / "a.npz", found, {"net": "x"})
    back = feature_sets.load(tmp_path / "a.npz")
    assert back is not None and back.count == 9
    np.testing.assert_array_equal(back.pooled.covariance, found.pooled.covariance)
    np.testing.assert_array_equal(back.spatial.mean, found.spatial.mean)
    np.testing.assert_array_equal(back.all_features(), found.all_features())
    assert feature_sets.load(tmp_path / "none.npz") is None


def test_published_names_belong_to_their_networks():
    assert scores.name_of("fd", "inception") == "fid"
    assert scores.name_of("fd", "i3d_videogpt") == "fvd"
    assert scores.name_of("fd", "i3d") == "fd_i3d"
    assert scores.name_of("fd", "efflite0") == "fd_efflite0"
    assert scores.name_of("kid", "inception") == "kid_inception"


def test_metrics_fields_are_checked(tiny_config):
    def refused(field, value, match):
        c = tiny_config.copy_and_resolve_references()
        c.evaluate.metrics_every = 64
        c.evaluate[field] = value
        with pytest.raises(ValueError, match=match):
            configuration.validate(c)

    refused("metrics", ("fid",), "evaluate.metrics is")
    refused("metrics", (), "metrics_every=0 turns them off")
    refused("net", "inception", "evaluate.weights is not set")
    refused("net", "vgg", "evaluate.net is")
    assert json.dumps(configuration.to_dict(tiny_config))
