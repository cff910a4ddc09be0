"""Clips, scans and shapes as files."""

import json

import numpy as np
import pytest
from PIL import Image

from nrdm_jax import config as configuration
from nrdm_jax.sampling import clips, files, generate, scans, writers

MANIFEST = {"seeds": [5, 6, 7], "labels": [0, 1, 0]}


def samples(shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (3, *shape)).astype(np.float32)


def written(directory, x, form="auto", **options):
    first = writers.write_samples(
        directory, x, generate.to_pixels(x), MANIFEST, form=form, **options
    )
    manifest = json.loads((directory / "manifest.json").read_text())
    assert not [p for p in directory.iterdir() if "partial" in p.name]
    assert all((directory / name).exists() for name in manifest["files"])
    return first, manifest


@pytest.mark.parametrize(
    ("shape", "form", "found"),
    [
        ((8, 8, 3), "auto", "pictures"),
        ((4, 8, 8, 3), "auto", "clips"),
        ((4, 8, 8, 1), "auto", "scans"),
        ((4, 8, 8, 1), "clips", "clips"),
        ((4, 8, 8, 1), "shapes", "shapes"),
        ((8, 8, 4), "auto", "arrays"),
        ((8, 8, 3), "arrays", "arrays"),
    ],
)
def test_forms_by_shape_or_as_asked_for(shape, form, found):
    assert writers.form_of(shape, form) == found
    assert set(writers.FORMS) | {"auto", "arrays"} == set(configuration.CHOICES["sample.write"])


@pytest.mark.parametrize(
    ("shape", "form"), [((8, 8, 3), "clips"), ((4, 8, 8, 3), "shapes"), ((4, 8, 8, 1), "pictures")]
)
def test_forms_that_do_not_fit_are_refused_before_a_step_is_trained(shape, form, tiny_config):
    with pytest.raises(ValueError, match=f"sample.write={form}"):
        writers.form_of(shape, form)
    tiny_config.data.shape, tiny_config.sample.write = shape, form
    with pytest.raises(ValueError, match=f"sample.write is {form}"):
        configuration.validate(tiny_config)


def test_clips_are_moving_pictures_of_their_frames(tmp_path):
    x = samples((6, 32, 33, 3))
    first, manifest = written(tmp_path, x)
    assert first.name == "grid.gif" and manifest["form"] == "clips"
    pixels = generate.to_pixels(x)
    own = Image.open(tmp_path / manifest["files"][1])
    assert own.format == "WEBP" and own.n_frames == 6 and own.info["loop"] == 0
    for i in (0, 5):
        own.seek(i)
        np.testing.assert_array_equal(np.asarray(own.convert("RGB")), pixels[1, i])
    np.testing.assert_array_equal(np.load(tmp_path / "samples.npy"), x)
    sheet = clips.sheets(pixels)
    grid = Image.open(tmp_path / "grid.webp")
    grid.seek(3)
    np.testing.assert_array_equal(np.asarray(grid.convert("RGB")), sheet[3])


@pytest.mark.parametrize("channels", [1, 3])
def test_mp4_decodes_to_its_frames(tmp_path, channels):
    av = pytest.importorskip("av")
    # smooth, as the colours of two neighbours are one in H.264's usual format; odd sides
    y, x = np.mgrid[:45, :67]
    frames = np.stack([127 + 100 * np.sin((x + 5 * t) / 20) * np.cos(y / 15) for t in range(7)])
    frames = np.rint(frames)[..., None].astype(np.uint8).repeat(channels, axis=-1)
    assert clips.write_mp4(tmp_path / "a.mp4", frames)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate) == pytest.approx(1000 / clips.MILLISECONDS, rel=1e-3)
        found = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(stream)])
    assert found.shape == (7, 46, 68, 3)
    assert (found[:, -1, :60] > 200).all()  # white below
    error = found[:, :44, :66].astype(float) - frames[:, :44, :66]
    assert np.abs(error).mean() < 4


def test_what_is_absent_is_told_once_and_leaves_the_rest(tmp_path, monkeypatch, capsys):
    files.tell_once.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for i in range(2):
        written(tmp_path / f"clips{i}", samples((4, 16, 16, 3)))
        _, manifest = written(tmp_path / f"scans{i}", samples((4, 16, 16, 1)))
        assert manifest["files"] == ["samples.npy"] * 3
    told = capsys.readouterr().out
    assert told.count("--extras=video") == 1 and told.count("--extras=medical") == 1
    assert not list(tmp_path.rglob("*.mp4")) and len(list(tmp_path.rglob("grid.webp"))) == 2
    files.tell_once.cache_clear()


def test_scans_are_nifti_files_in_their_place(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    x = samples((8, 12, 10, 1))
    first, manifest = written(tmp_path, x, voxel=2.0)
    assert first.name == "slices.png" and manifest["form"] == "scans"
    assert manifest["files"][2] == "00002_seed7_label0.nii.gz"
    image = nibabel.load(tmp_path / manifest["files"][2])
    pixels = generate.to_pixels(x)[2, ..., 0]
    np.testing.assert_array_equal(np.asarray(image.dataobj), pixels.T)
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.header.get_zooms() == (2.0, 2.0, 2.0)
    assert image.header.get_xyzt_units()[0] == "mm"
    middle = image.affine @ [*(np.asarray(image.shape) - 1) / 2, 1]
    np.testing.assert_allclose(middle[:3], 0)
    before = (tmp_path / manifest["files"][2]).read_bytes()
    scans.write_nifti(tmp_path / "again.nii.gz", pixels, 2.0)
    assert (tmp_path / "again.nii.gz").read_bytes() == before


def test_a_written_scan_is_read_by_the_folder_as_it_was(tmp_path):
    pytest.importorskip("nibabel")
    from nrdm_jax.data.builders import nifti_folder

    pixels = generate.to_pixels(samples((8, 12, 10)))[0]
    scans.write_nifti(tmp_path / "a.nii.gz", pixels, 1.5)
    np.testing.assert_array_equal(nifti_folder.load(tmp_path / "a.nii.gz")[0], pixels)
    assert nifti_folder.header_of(tmp_path / "a.nii.gz") == ((8, 12, 10), (1.5, 1.5, 1.5))


def test_slices_show_heads_up_and_fronts_up():
    """Marked near the head, near the front, near the right; each is where it belongs."""
    scan = np.zeros((20, 24, 16), np.uint8)
    head, front, right = scan.copy(), scan.copy(), scan.copy()
    head[17:] = front[:, 21:] = right[:, :, 13:] = 255

    def side(plane):
        rows, columns = (axis.mean() / size for axis, size in
                         zip(np.nonzero(plane), plane.shape, strict=True))  # fmt: skip
        if abs(rows - 0.5) > 0.2:
            return "top" if rows < 0.5 else "bottom"
        return "left" if columns < 0.5 else "right"

    axial, coronal, sagittal = 1, 4, 7
    assert [side(scans.planes(front)[i]) for i in (axial, sagittal)] == ["top", "right"]
    assert [side(scans.planes(head)[i]) for i in (coronal, sagittal)] == ["top", "top"]
    assert [side(scans.planes(right)[i]) for i in (axial, coronal)] == ["right", "right"]
    sheet = scans.sheet(np.stack([head, front])[..., None])
    assert sheet.dtype == np.uint8 and sheet.ndim == 3 and sheet.shape[-1] == 1


def test_shapes_are_meshes_of_what_is_above_the_middle(tmp_path):
    x = np.full((3, 12, 12, 12, 1), -1.0, np.float32)
    x[0, 3:9, 2:10, 4:8] = 1.0
    x[1] = -3.0  # nothing: a file of nothing
    x[2, 4:8, 4:8, 4:8] = 7.0  # beyond the range, as samples are: no larger than 1 makes it
    first, manifest = written(tmp_path, x, "shapes")
    assert first.name == "views.png" and manifest["form"] == "shapes"
    for name in manifest["files"]:
        assert (tmp_path / name).with_suffix(".ply").exists()
    lines = (tmp_path / manifest["files"][0]).read_text().splitlines()
    corners = np.asarray([line.split()[1:] for line in lines if line.startswith("v ")], float)
    # x to the right is the last axis, y up the first, z to the front against the second
    np.testing.assert_allclose(corners.max(axis=0) * 12, (2, 3, 4), atol=1e-3)
    np.testing.assert_allclose(corners.min(axis=0) * 12, (-2, -3, -4), atol=1e-3)
    lines = (tmp_path / manifest["files"][2]).read_text().splitlines()
    corners = np.asarray([line.split()[1:] for line in lines if line.startswith("v ")], float)
    np.testing.assert_allclose(corners.max(axis=0) * 12, (2, 2, 2), atol=1e-3)
    assert (tmp_path / manifest["files"][1]).read_text().strip() == ""


@pytest.mark.parametrize(
    ("shape", "form"), [((8, 8, 3), "pictures"), ((3, 8, 8, 3), "clips"), ((4, 8, 8, 1), "shapes")]
)
def test_files_are_named_by_what_their_samples_were_told(tmp_path, shape, form):
    x = samples(shape)
    told = MANIFEST | {"captions": ["a chair", "two: chairs", "…"]}
    writers.write_samples(tmp_path, x, generate.to_pixels(x), told, form=form)
    files_named = json.loads((tmp_path / "manifest.json").read_text())["files"]
    assert [name.split(".")[0] for name in files_named] == [
        "00000_seed5_a-chair", "00001_seed6_two-chairs", "00002_seed7_no-text"
    ]  # fmt: skip
    assert all((tmp_path / name).exists() for name in files_named)


@pytest.mark.parametrize(
    ("shape", "form", "there"),
    [
        ((6, 8, 8, 1), "shapes", ["views.png", "samples.npy"]),
        ((6, 8, 8, 1), "scans", ["slices.png", "grid.gif", "samples.npy"]),
        ((8, 8, 3), "pictures", ["grid.png"]),
    ],
)
def test_sheets_alone(tmp_path, shape, form, there):
    _, manifest = written(tmp_path, samples(shape), form, each=False)
    assert {p.name for p in tmp_path.iterdir()} == {*there, "manifest.json"}
    assert manifest["files"] == [there[-1]] * 3


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(RuntimeError), files.whole(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "before" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    x = samples((8, 8, 3))
    monkeypatch.setattr(Image.Image, "save", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        writers.write_samples(tmp_path / "out", x, generate.to_pixels(x), MANIFEST)
    assert not list((tmp_path / "out").iterdir())
