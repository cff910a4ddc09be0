import json

import jax
import numpy as np
import pytest
from PIL import Image

from nrdm_jax import build, drawing
from nrdm_jax.sampling import archives, generate, writers
from nrdm_jax.sharding.mesh import make_mesh


@pytest.fixture
def sampled(tiny_config, fill_zeros, monkeypatch):
    """(devices, batch size, guidance) -> pixels of the same ten seeds."""
    everything = jax.devices()

    def run(devices, batch_size, guidance=1.0):
        monkeypatch.setattr(jax, "devices", lambda *_: everything[:devices])
        tiny_config.sample.batch_size = batch_size
        parts = build.run(tiny_config)
        weights = fill_zeros(jax.device_get(parts.fresh_state().params), jax.random.key(3), 0.1)
        sampler = drawing.generator(
            tiny_config, parts.apply, parts.path, parts.mesh, steps=4, scale=guidance
        )
        labels = np.arange(10, dtype=np.int32) % 4
        given = {"label": labels} if devices == 1 else lambda rows: {"label": labels[rows]}
        return generate.to_pixels(sampler(weights, np.arange(10), given))

    return run


def test_a_sample_is_its_seed_s_whatever_the_batch_and_the_devices(sampled):
    alone = sampled(1, 3).astype(int)
    assert alone.std() > 20 and alone.shape == (10, 8, 8, 3)
    for devices, batch in ((1, 10), (8, 4), (8, 16)):
        assert np.abs(sampled(devices, batch).astype(int) - alone).max() <= 1


@pytest.mark.parametrize(
    ("devices", "mesh_fields", "fields", "wanted"),
    [
        (1, {}, {}, 64),  # small trunks: all in the caches
        (1, {}, {"size": "S"}, 4),  # DiT-S/2 of 256 tokens: 393,216 bytes an example
        (1, {}, {"size": "S", "patch": (1,)}, 1),  # four times as many tokens
        (4, {}, {"size": "XL", "patch": (1,)}, 4),  # one a device, whatever its size
        (4, {"stage": 4, "data": 1}, {"size": "XL"}, 4),  # and one a micro-batch
    ],
)
def test_a_batch_stays_in_the_caches_of_a_cpu(tiny_config, devices, mesh_fields, fields, wanted):
    tiny_config.data.shape = (32, 32, 4)
    tiny_config.model.patch = (2,)
    tiny_config.model.update(fields)
    mesh = make_mesh(dict(tiny_config.mesh) | mesh_fields, jax.devices()[:devices])
    assert drawing.batch_size(tiny_config, mesh) == wanted
    tiny_config.sample.batch_size = 30  # as told, in whole parts
    assert drawing.batch_size(tiny_config, mesh) == (32 if mesh.shape["data"] == 4 else 30)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"sampler": "sde", "diffusion": "sbdm"}, "sample.diffusion is sbdm"),
     ({"grid": "respaced"}, "sample.grid is respaced")],
)  # fmt: skip
def test_what_cannot_be_sampled_is_refused_before_a_step_is_trained(tiny_config, changes, says):
    for field, value in changes.items():
        tiny_config.sample[field] = value
    with pytest.raises(ValueError, match=says):
        build.run(tiny_config)


def test_guidance_changes_samples(sampled):
    assert np.abs(sampled(1, 10, 3.0).astype(int) - sampled(1, 10)).max() > 1


def test_pixels_are_rounded_and_clipped():
    x = np.asarray([-2.0, -1.0, 0.0, 0.5 / 127.5 * 0.98, 1.0, 2.0])
    np.testing.assert_array_equal(generate.to_pixels(x), [0, 0, 128, 128, 255, 255])


def test_files_and_manifest(tmp_path):
    x = np.linspace(-1, 1, 5 * 8 * 8 * 3).reshape(5, 8, 8, 3).astype(np.float32)
    pixels = generate.to_pixels(x)
    manifest = {"seeds": [3, 4, 5, 6, 7], "labels": [0, 1, 0, 1, 0]}
    grid = writers.write_samples(tmp_path / "out", x, pixels, manifest)
    stored = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert stored["seeds"] == manifest["seeds"] and len(stored["files"]) == 5
    second = np.asarray(Image.open(tmp_path / "out" / stored["files"][1]))
    np.testing.assert_array_equal(second, pixels[1])
    assert Image.open(grid).size == ((3 * 10 + 2) * 8, (2 * 10 + 2) * 8)


def test_what_is_no_picture_is_written_as_an_array(tmp_path):
    x = np.zeros((2, 4, 4, 7), np.float32)
    first = writers.write_samples(
        tmp_path, x, generate.to_pixels(x), {"seeds": [0, 1], "labels": [0, 0]}
    )
    np.testing.assert_array_equal(np.load(first), x)


@pytest.mark.parametrize("channels", [1, 3])
def test_clips_become_a_gif_and_slices(tmp_path, channels):
    rng = np.random.default_rng(0)
    x = rng.choice([-1.0, 1.0], (3, 10, 64, 64, 1)) * np.ones(channels)
    first = writers.write_samples(
        tmp_path, x, generate.to_pixels(x), {"seeds": [0, 1, 2], "labels": [0, 0, 0]}, form="clips"
    )
    assert first.name == "grid.gif"
    moving = Image.open(first)
    assert moving.n_frames == 10 and moving.info["loop"] == 0
    moving.seek(7)
    shown = np.asarray(moving.convert("RGB"))
    # the second example, right of the first
    np.testing.assert_array_equal(shown[2:66, 68:132, 0], generate.to_pixels(x)[1, 7, :, :, 0])
    rows = np.asarray(Image.open(tmp_path / "slices.png"))
    assert rows.shape[:2] == (2 + 3 * 66, 2 + 8 * 66)
    # the last row shows the first and the last frame of the last example at its ends
    rows = rows.reshape(*rows.shape[:2], -1)[2 + 2 * 66 : -2]
    for place, frame in ((slice(2, 66), 0), (slice(-66, -2), 9)):
        np.testing.assert_array_equal(rows[:, place, 0], generate.to_pixels(x)[2, frame, :, :, 0])
    np.testing.assert_array_equal(np.load(tmp_path / "samples.npy"), x)


def test_an_archive_for_other_evaluators_is_written_as_samples_come(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 4, 5, 3)).astype(np.uint8)
    path = tmp_path / "a" / "samples.npz"
    archive = archives.NpzWriter(path, pixels.shape)
    for part in (slice(0, 3), slice(3, 7)):
        archive.add(pixels[part], np.arange(7)[part])
        assert not path.exists()
    archive.close()
    with np.load(path) as file:
        np.testing.assert_array_equal(file["arr_0"], pixels)
        np.testing.assert_array_equal(file["arr_1"], np.arange(7))
    cut_short = archives.NpzWriter(tmp_path / "b.npz", pixels.shape)
    cut_short.add(pixels[:3], np.arange(3))
    cut_short.close()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("caption", "name"),
    [
        ("a red car: 2 doors", "a-red-car-2-doors"),
        ("../../etc/passwd", "etc-passwd"),
        ("..", "no-text"),
        ("e\u0301t\u00e9 \U0001f697", "\u00e9t\u00e9"),
        ("车" * 20, "车" * 13),  # 40 bytes, in whole characters
        ("", "no-text"),
    ],
)
def test_captions_are_safe_in_names(caption, name):
    assert writers.in_a_name(caption) == name
