"""`nrdm data`: sets prepared, shown and checked by one command each."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from nrdm_jax import data_reports
from nrdm_jax.data import contents
from nrdm_jax.data.builders import solids, table
from nrdm_jax.data.builders.items import ItemsBuilder
from nrdm_jax.data.errors import DataError
from nrdm_jax.sampling.contact_sheets import contact_sheet

ROOT = pathlib.Path(__file__).resolve().parents[1]


def nrdm(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "nrdm_jax.cli", "data", *arguments], cwd=ROOT, timeout=120,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def result(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))


@pytest.fixture
def folder(tmp_path):
    for i in range(12):
        place = tmp_path / "pictures" / ("red" if i % 3 else "blue")
        place.mkdir(parents=True, exist_ok=True)
        colour = (200, 10 * i, 0) if i % 3 else (0, 10 * i, 200)
        Image.new("RGB", (20, 16), colour).save(place / f"{i}.png")
        (place / f"{i}.txt").write_text(f"{place.name} number {i}")
    (tmp_path / "pictures" / "red" / "11.png").write_bytes(b"cut off")
    return f"image_folder:{tmp_path / 'pictures'}"


def test_a_folder_is_prepared_checked_and_shown(folder, tmp_path):
    place = f"--dir={tmp_path / 'data'}"
    done = nrdm("prepare", folder, "--shape=16,16,3", place)
    found = result(done)
    assert sum(found["records"].values()) == 11 and found["left_out"] == 1
    assert "11.png: cannot be decoded" in done.stderr and "records, " in done.stdout

    done = nrdm("verify", folder, place)  # of another shape
    assert done.returncode == 65 and "is not prepared" in done.stderr
    options = {"shape": (16, 16, 3), "data_dir": str(tmp_path / "data"), "stride": 1}
    assert data_reports.verify(folder, **options)["files"] >= 5
    (shard,) = pathlib.Path(found["dir"]).glob("*train*")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    done = nrdm("verify", folder, "--shape=16,16,3", place)
    assert done.returncode == 65 and f"{shard.name} is not as it was written" in done.stderr
    shard.write_bytes(whole)

    done = nrdm("show", folder, "--shape=16,16,3", place, f"--out={tmp_path / 'out'}")
    told = result(done)
    counts = np.sum([list(part.values()) for part in told["classes"].values()], axis=0)
    assert counts.tolist() == [4, 7] and list(told["classes"]["train"]) == ["blue", "red"]
    assert "image        16 x 16 x 3 uint8" in done.stdout and "caption: " in done.stdout
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert min(sheet.size) > 200


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "give prepare|show|verify and the name"),
        (("make", "openmoji"), "'make openmoji' is not understood"),
        (("prepare", "openmoji", "--shape=32,x"), "--shape='32,x'"),
        (("prepare", "openmoji", "--shape=32,32,1"), "openmoji has (n, n, 3)"),
        (("prepare", "openmoji", "--corrupt=keep"), "corrupt"),
    ],
)
def test_errors_of_the_command_name_the_fix(arguments, says, tmp_path):
    done = nrdm(*arguments, f"--dir={tmp_path / 'data'}")
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


def test_volumes_are_shown_in_slices(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(solids, "COUNTS", {"train": 12, "heldout": 4})
    told = data_reports.show(
        "solids", (8, 8, 8, 1), str(tmp_path), tmp_path / "out", examples=5, corrupt="fail",
        stride=1,
    )  # fmt: skip
    assert [pathlib.Path(file).name for file in told["files"]] == ["sheet.png", "slices.png"]
    assert told["classes"]["train"] == dict.fromkeys(solids.KINDS, 3)
    assert "train: 12 records: ball 3, box 3" in capsys.readouterr().out


def test_clips_are_shown_moving(tmp_path):
    for i in range(3):
        frames = [Image.new("L", (8, 8), 20 * j + 60 * i) for j in range(4)]
        (tmp_path / "a").mkdir(exist_ok=True)
        frames[0].save(tmp_path / "a" / f"{i}.gif", save_all=True, append_images=frames[1:])
    told = data_reports.show(
        f"video_folder:{tmp_path / 'a'}", (4, 8, 8, 3), str(tmp_path / "data"), tmp_path / "out",
        examples=9, corrupt="fail", stride=1,
    )  # fmt: skip
    assert told["files"][-1].endswith("clips.gif")
    with Image.open(told["files"][-1]) as moving:
        assert moving.n_frames == 4


def test_latents_of_a_prepared_tfds_set_are_counted_and_not_drawn(tmp_path, capsys):
    class Codes(ItemsBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "latent": tfds.features.Tensor(shape=(2, 2, 4), dtype=np.float32),
                "label": tfds.features.ClassLabel(num_classes=2),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _items(self):
            return {"train": [(str(i), i) for i in range(5)]}

        def _examples(self, content):
            yield {"latent": np.full((2, 2, 4), content, np.float32), "label": content % 2}

    Codes(data_dir=tmp_path, file_format="array_record").download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    told = data_reports.show(
        "tfds:codes", None, str(tmp_path), tmp_path / "out", examples=5, corrupt="skip", stride=1
    )
    assert told["files"] == [] and told["classes"] == {"train": {"0": 3, "1": 2}}
    assert "none is drawn" in capsys.readouterr().out
    assert data_reports.verify("tfds:codes", None, str(tmp_path), stride=1)["files"] >= 3


def test_records_that_are_shown_are_spread_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(solids, "COUNTS", {"train": 12, "heldout": 4})
    builder = table.prepared("solids", (8, 8, 8, 1), str(tmp_path))
    whole = builder.as_data_source("train")
    some = contents.take(builder, "train", 4)
    for i, place in enumerate((0, 4, 7, 11)):
        np.testing.assert_array_equal(some.x[i], whole[place]["volume"])
        assert some.titles[i] == solids.KINDS[whole[place]["label"]]
    assert len(contents.take(builder, "train", 99).x) == 12
    with monkeypatch.context() as patch, pytest.raises(DataError, match="needed: one of"):
        patch.setattr(contents, "FEATURES", ("image",))
        contents.take(builder, "train", 4)


def test_a_sheet_holds_each_picture_with_its_title_below():
    images = np.zeros((5, 8, 6, 3), np.uint8)
    images[np.arange(5), :, :, 0] = 50 * np.arange(1, 6)[:, None, None]
    blank, titled = (contact_sheet(images, (text,) * 5) for text in ("", "a title that is long"))
    assert blank.shape == titled.shape
    for level in 50 * np.arange(1, 6):
        assert ((blank == (level, 0, 0)).all(axis=-1)).sum() == 8 * 6 * 16**2
        # Titles are on white, and cover no picture.
        assert ((titled == (level, 0, 0)).all(axis=-1)).sum() == 8 * 6 * 16**2
    assert (titled < blank).any()
    assert contact_sheet(images[..., :1], ("",) * 5).shape == blank.shape
