"""The text of a run, by its config: the same given wherever it is encoded, left out for guidance,
and gone on with after a stop."""

import itertools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import jobs
from nrdm_jax import build, drawing, measures, networks, programs, texts
from nrdm_jax.checkpointing.manager import Checkpoints
from nrdm_jax.data import captions
from nrdm_jax.sharding.mesh import make_mesh
from nrdm_jax.training.state import save_items, state_of

LENGTH = 5


@pytest.fixture
def text_config(tiny_config):
    """Bytes of synthetic captions, which name the class that nobody tells otherwise."""
    c = tiny_config
    c.model.depth, c.model.width = 1, 16
    c.train.batch_size, c.evaluate.batch_size = 8, 8
    c.text.update(encoder="bytes", length=16, width=8, depth=1, heads=2)
    c.sample.batch_size = 8
    return c


@pytest.fixture
def frozen_config(text_config, files):
    """A tiny T5 by its files."""
    text_config.text.update(encoder="t5", weights=str(files("t5")), length=LENGTH, width=8)
    return text_config


def batches(config, mesh, data_dir, count=2):
    loader = build.train_loader(config, build.source(config, "train", str(data_dir)), mesh)
    return list(itertools.islice(loader.iterate(3), count))


def test_states_kept_with_the_data_are_those_of_the_step(frozen_config, tmp_path, capsys):
    c, mesh = frozen_config, make_mesh(frozen_config.mesh)
    found = {}
    for where in ("records", "step"):
        c.text.where = where
        found[where] = batches(c, mesh, tmp_path)
        assert (tmp_path / "texts").exists() == (where == "records") or where == "step"
    for kept, made in zip(found["records"], found["step"], strict=True):
        assert set(kept) == set(made) == {"x", "label", "text", "text_mask", "text_pooled"}
        assert set(kept) == set(build.abstract_batch(c, mesh, kept["x"].dtype))
        mask = np.asarray(kept["text_mask"])
        np.testing.assert_array_equal(mask, made["text_mask"])
        assert np.all(mask.sum(axis=1) == 3)  # `pattern number 2`
        kept_text, made_text = (np.asarray(b["text"])[mask] for b in (kept, made))
        np.testing.assert_allclose(kept_text, made_text, atol=1e-5)
        np.testing.assert_allclose(kept["text_pooled"], made["text_pooled"], atol=1e-5)
        assert made["text"].sharding == kept["text"].sharding  # still divided over eight devices
        assert len({tuple(np.round(row, 3)) for row in kept_text[2::3]}) > 2  # by class
    assert capsys.readouterr().out.count("captions are encoded by t5") == 1


def test_held_out_records_are_told_the_same_way(frozen_config, tmp_path):
    c, mesh = frozen_config, make_mesh(frozen_config.mesh)
    found = []
    for c.text.where in ("records", "step"):
        heldout = build.source(c, "heldout", str(tmp_path))
        (batch,) = measures.heldout_batches(c, heldout, mesh, limit=8)()
        given = drawing.prompts(c, np.arange(3), lambda heldout=heldout: heldout)
        found.append((np.where(np.asarray(batch["text_mask"])[..., None], batch["text"], 0), given))
        assert set(given) == {"label", "text", "text_mask", "text_pooled"}
        assert set(given["label"]) == {4}
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-5)
    mask = found[0][1]["text_mask"][..., None]
    np.testing.assert_allclose(*(np.where(mask, g["text"], 0) for _, g in found), atol=1e-5)
    np.testing.assert_allclose(*(g["text_pooled"] for _, g in found), atol=1e-5)
    some = drawing.prompts(c, np.arange(3), lambda: heldout, rows=np.asarray([2, 0]))
    for name, values in some.items():  # a part is that of the whole
        np.testing.assert_allclose(values, found[1][1][name][[2, 0]], atol=1e-6)
    # A caption of one's own is encoded as theirs are.
    words = drawing.heldout_captions(c, 3, lambda: heldout)
    own = drawing.prompts(c, np.arange(3), lambda: pytest.fail("opened"), captions=words)
    for name, values in own.items():
        np.testing.assert_allclose(values, found[1][1][name], atol=1e-6)


def test_what_does_not_fit_the_weights_is_told_before_the_first_batch(frozen_config, tmp_path):
    c = frozen_config
    c.text.width = 16
    for c.text.where in ("records", "step"):
        with pytest.raises(ValueError, match="text.width is 16, .* 8 channels; set it to 8"):
            build.source(c, "train", str(tmp_path))


def test_more_tokens_than_there_are_places(text_config, files, tmp_path):
    c = text_config
    c.text.update(encoder="clip", weights=str(files("clip")), length=17, where="step")
    with pytest.raises(ValueError, match="text.length is 17, .*=clip reads 16 tokens at most"):
        build.source(c, "train", str(tmp_path))


def test_captions_that_are_cut_are_told(text_config, tmp_path, capsys):
    c = text_config
    c.text.length = 15
    source = build.source(c, "heldout", str(tmp_path))
    assert "64 of 64 captions are cut to text.length=15, such as 'pattern nu" in (
        capsys.readouterr().out
    )
    assert isinstance(source, captions.CaptionedSource)


def test_class_and_text_are_left_out_together_and_as_often_as_asked(text_config, tmp_path):
    c = text_config
    c.text.with_class, c.model.label_dropout = True, 0.3
    source = build.source(c, "train", str(tmp_path))
    batch = {name: jnp.asarray(x) for name, x in source.gather(np.arange(512)).items()}
    seen = []

    def apply(params, x_t, t, given):
        seen.append(given)
        return x_t

    objective = build.objective(c, apply, build.diffusion_path(c))
    objective({}, batch, jax.random.split(jax.random.key(0), 512))
    (given,) = seen
    dropped = np.asarray(given["label"]) == c.data.num_classes
    np.testing.assert_array_equal(dropped, ~np.asarray(given["tokens"]).any(axis=1))
    kept = np.asarray(given["tokens"])[~dropped]
    np.testing.assert_array_equal(kept, np.asarray(batch["tokens"])[~dropped])
    assert abs(dropped.mean() - 0.3) < 4 * (0.3 * 0.7 / 512) ** 0.5


@pytest.mark.slow
def test_two_processes_whose_devices_differ_in_bits_give_samples_the_same(tmp_path):
    port = str(jobs.free_port())
    script = pathlib.Path(__file__).with_name("prompted.py")
    environment = os.environ | {"PYTHONPATH": str(script.parents[2]), "JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen([sys.executable, script, port, str(i), "2", tmp_path / f"{i}.json"],
                         env=environment)
        for i in range(2)
    ]  # fmt: skip
    assert [process.wait(timeout=200) for process in started] == [0, 0]
    one, other = (json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2))
    assert one["own"] != other["own"]
    assert one["drawn"] == other["drawn"] == one["own"]  # of the first, who writes


def test_guidance_is_away_from_no_text(text_config, fill_zeros):
    c = text_config
    c.sample.sampler, c.mesh.data = "euler", 1
    parts = build.run(c, jax.devices()[:1])
    weights = fill_zeros(jax.device_get(parts.fresh_state().params), jax.random.key(3), 0.2)

    words = ("a red car", "né🚗 cut in its last character", "")

    def drawn(scale):
        """Of each of the words, and of the same seeds without any."""
        sampler = drawing.generator(c, parts.apply, parts.path, parts.mesh, steps=2, scale=scale)
        seeds, texts = np.arange(6) % 3, (*words, "", "", "")
        given = drawing.prompts(c, seeds, lambda: pytest.fail("opened"), captions=texts)
        return np.split(sampler(weights, seeds, given), 2)

    (plain, empty), (nothing, _), (guided, _) = drawn(1.0), drawn(0.0), drawn(3.0)
    np.testing.assert_allclose(nothing, empty, atol=1e-5)
    np.testing.assert_allclose(guided[2], empty[2], atol=1e-5)  # of no text, there is no away
    for i in (0, 1):
        assert np.abs(plain[i] - empty[i]).max() > 1e-3
        assert np.abs(guided[i] - plain[i]).max() > 1e-3


def test_captions_that_nobody_reads_or_that_lack_their_class_are_refused(text_config):
    def prompted(captions=("a",), labels=None):
        return drawing.prompts(
            text_config, np.arange(1), lambda: None, labels=labels, captions=captions
        )

    with pytest.raises(ValueError, match="leave out --labels"):
        prompted(None, np.asarray([1]))
    with pytest.raises(ValueError, match="captions only"):
        prompted(labels=np.asarray([1]))
    text_config.text.with_class = True
    with pytest.raises(ValueError, match="give --labels too"):
        prompted()
    assert prompted(labels=np.asarray([1]))["label"] == 1
    text_config.data.seen = "box"
    with pytest.raises(ValueError, match="data.seen=box"):
        prompted()
    text_config.text.encoder = "none"
    with pytest.raises(ValueError, match="text.encoder=none"):
        prompted()


def test_what_goes_on_after_a_stop_is_what_would_have_been(frozen_config, tmp_path):
    c = frozen_config
    c.text.where, c.mesh.data = "step", 1
    parts = build.run(c, jax.devices()[:1])
    source = build.source(c, "train", str(tmp_path))
    step = programs.compiled_step(parts, source.dtype)

    def after(state, first, last):
        batches = build.train_loader(c, source, parts.mesh).iterate(first * c.train.batch_size)
        for batch in itertools.islice(batches, last - first):
            state, metrics = step(state, batch)
        return state, float(metrics["loss"])

    whole, loss = after(parts.fresh_state(), 0, 4)
    half, _ = after(parts.fresh_state(), 0, 2)
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"))
    checkpoints.save(2, save_items(half), {"step": 2})
    checkpoints.wait()
    texts._opened.cache_clear()  # as in another process
    restored = state_of(checkpoints.restore(2, save_items(parts.abstract_state)))
    again, other = after(restored, 2, 4)
    checkpoints.close()
    assert loss == other
    for x, y in zip(*map(jax.tree.leaves, (whole, again)), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_run_is_looked_at_without_its_encoder(text_config):
    """Weights that are on another machine: shapes are the config's."""
    c = text_config
    c.text.update(encoder="t5", weights="/nowhere", width=24, length=7)
    parts = build.run(c)
    shapes = build.abstract_batch(c, parts.mesh, jnp.uint8)
    assert shapes["text"].shape == (8, 7, 24) and shapes["text_mask"].shape == (8, 7)
    assert shapes["text_pooled"].shape == (8, 24)
    assert networks.text_width(c) == 24
    with pytest.raises(ValueError, match="weights /nowhere: there is no such file"):
        texts.encoder(c)
    c.text.encoder = "minilm"
    assert networks.text_width(c) == 24
    c.text.weights = None
    assert networks.text_width(c) == 384  # the package's


def test_without_a_class_all_records_and_samples_are_of_none(tiny_config, tmp_path):
    c = tiny_config
    classes = build.source(c, "train", str(tmp_path)).gather(np.arange(5))
    c.data.with_class = False
    records, null = build.source(c, "train", str(tmp_path)), c.data.num_classes
    found = records.gather(np.arange(5))
    assert set(found["label"]) == {null}
    np.testing.assert_array_equal(found["x"], classes["x"])
    np.testing.assert_array_equal(
        captions.plain(records).gather(np.arange(5))["label"], classes["label"]
    )
    given = drawing.prompts(c, np.arange(3), lambda: pytest.fail("opened"))
    assert set(given) == {"label"} and given["label"].tolist() == [null] * 3
    assert drawing.unconditional(c) and not drawing.by_class(c)
    c.data.seen = "box"
    assert not drawing.unconditional(c)
    c.data.seen = "none"
    with pytest.raises(ValueError, match="leave out --labels"):
        drawing.prompts(c, np.arange(1), lambda: None, labels=np.asarray([1]))
