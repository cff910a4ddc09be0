"""Sets of files that a user has, prepared and read; what a killed preparation leaves behind."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from nrdm_jax.data import listings, manifest, sources
from nrdm_jax.data.builders import fluent_emoji, openmoji, table, weizmann
from nrdm_jax.data.builders.image_folder import ImageFolder
from nrdm_jax.data.builders.items import ItemsBuilder
from nrdm_jax.data.errors import DataError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def draw(path, seed, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(path)


def pictures(root, count=40):
    for i in range(count):
        draw(root / ("cat" if i % 2 else "çat 日本") / f"{i}.png", i)
    return f"image_folder:{root}"


def prepared(name, data_dir, shape=(8, 8, 3), **options):
    return table.prepared(name, shape, str(data_dir), **options)


def records(builder, split):
    return list(builder.as_data_source(split))


@pytest.mark.parametrize("name", [*table.BUILDERS, *table.FOLDERS])
def test_every_set_is_made_of_items_and_has_a_shape(name):
    cls = (table.BUILDERS | table.FOLDERS)[name]
    assert issubclass(cls, ItemsBuilder) and len(cls.SHAPE) in (3, 4)


def test_a_folder_of_pictures_becomes_records(tmp_path, capsys):
    name = pictures(tmp_path / "a")
    builder = prepared(name, tmp_path / "data")
    train, heldout = (records(builder, split) for split in sources.SPLITS)
    assert len(train) + len(heldout) == 40 and heldout
    files = {record["file"].decode(): record for record in train + heldout}
    names = builder.info.features["label"].names
    assert sorted(names) == ["cat", "çat 日本"]
    for key, record in files.items():
        assert names[record["label"]] == key.split("/")[0]
        whole = np.asarray(Image.open(tmp_path / "a" / key)).astype(float)
        assert record["image"].shape == (8, 8, 3)
        np.testing.assert_allclose(record["image"].mean(), whole[:, 1:-1].mean(), atol=6)
    source = sources.open_source(
        name, "train", shape=(8, 8, 3), num_classes=2, data_dir=str(tmp_path / "data"),
        in_memory_bytes=2**20,
    )  # fmt: skip
    assert len(source) == len(train)
    assert capsys.readouterr().out.count("preparing data set") == 1


def test_a_changed_folder_is_prepared_anew(tmp_path):
    name = pictures(tmp_path / "a")
    first = prepared(name, tmp_path / "data")
    draw(tmp_path / "a" / "cat" / "more.png", 99)
    again = prepared(name, tmp_path / "data")
    assert again.data_dir != first.data_dir
    assert sum(s.num_examples for s in again.info.splits.values()) == 41


def test_the_same_bytes_are_the_same_records_wherever_and_whenever_written(tmp_path):
    def fingerprints(name, shape=(8, 8, 3)):
        opened = (
            sources.open_source(
                name, split, shape=shape, num_classes=2, data_dir=str(tmp_path / "data"),
                in_memory_bytes=0,
            )
            for split in sources.SPLITS
        )  # fmt: skip
        return [source.fingerprint for source in opened]

    name, one = pictures(tmp_path / "a"), tmp_path / "a" / "cat" / "1.png"
    first = fingerprints(name)
    stamp = ImageFolder.config_for((8, 8, 3), tmp_path / "a").name
    os.utime(one, (1, 1))
    assert ImageFolder.config_for((8, 8, 3), tmp_path / "a").name != stamp
    assert fingerprints(name) == first
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    (tmp_path / "b" / "README.md").write_text("pictures")
    assert fingerprints(f"image_folder:{tmp_path / 'b'}") == first
    draw(one, 1000)
    changed = fingerprints(name)
    assert changed != first and fingerprints(name, (8, 16, 3)) != changed
    assert first[0] != first[1]


def test_captions_are_records_and_a_missing_one_is_told(tmp_path, capsys):
    name = pictures(tmp_path / "a", 6)
    rows = [{"file_name": f"cat/{i}.png", "text": f"cat {i}"} for i in (1, 3, 5)]
    lines = "\n".join(map(json.dumps, rows))
    (tmp_path / "a" / "metadata.jsonl").write_text(lines)
    for i in (0, 2):
        (tmp_path / "a" / "çat 日本" / f"{i}.txt").write_text(f"çat {i}")
    builder = prepared(name, tmp_path / "data")
    found = [r for split in sources.SPLITS for r in records(builder, split)]
    assert {r["caption"].decode() for r in found} == {"cat 1", "cat 3", "cat 5", "çat 0", "çat 2"}
    assert "1 of 6 items" in (told := capsys.readouterr().err) and "4.png: has no caption" in told


def test_corrupt_pictures_are_left_out_and_named_or_refused(tmp_path, capsys):
    name = pictures(tmp_path / "a")
    broken = tmp_path / "a" / "cat" / "7.png"
    broken.write_bytes(broken.read_bytes()[:100])
    builder = prepared(name, tmp_path / "data")
    told = capsys.readouterr().err
    assert "1 of 40 items" in told and f"{broken}: cannot be decoded" in told
    assert sum(s.num_examples for s in builder.info.splits.values()) == 39
    (left_out,) = manifest.left_out(pathlib.Path(builder.data_dir))
    assert left_out.endswith("/cat/7.png")
    with pytest.raises(DataError, match="data.corrupt=fail, and 1 items are not in"):
        prepared(name, tmp_path / "data", corrupt="fail")
    with pytest.raises(DataError, match=r"7.png: cannot be decoded"):
        prepared(name, tmp_path / "other", corrupt="fail")
    for i in range(0, 24, 2):
        (tmp_path / "a" / "çat 日本" / f"{i}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"11 of 40 items cannot be used, more than 10 and than 1%"):
        prepared(name, tmp_path / "data")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds 0 files"):
        prepared(f"image_folder:{tmp_path}", tmp_path / "data")
    assert not (tmp_path / "data").exists()


KILLED = """
import sys, time
from nrdm_jax.data.builders import table
from nrdm_jax.data.builders.image_folder import ImageFolder

ImageFolder.ITEMS_PER_SHARD = 4
make = ImageFolder._examples
def slowly(self, content):
    time.sleep(0.05)
    yield from make(self, content)
ImageFolder._examples = slowly
table.prepared(sys.argv[1], (8, 8, 3), sys.argv[2])
"""


def test_a_killed_preparation_goes_on_and_gives_the_same_bytes(tmp_path, monkeypatch):
    name = pictures(tmp_path / "a")
    monkeypatch.setattr(ImageFolder, "ITEMS_PER_SHARD", 4)
    whole = pathlib.Path(prepared(name, tmp_path / "undisturbed").data_dir)

    data = tmp_path / "data"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, name, str(data)], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while len(done := list(data.glob("**/partial.*/*-*.json"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in data.glob("**/partial.*/*-*.json")}
    assert len(done) <= len(kept) < 11

    made = []
    make = ImageFolder._examples
    monkeypatch.setattr(
        ImageFolder, "_examples", lambda self, item: made.append(item) or make(self, item)
    )
    resumed = pathlib.Path(prepared(name, data).data_dir)
    assert len(made) <= 40 - 3 * len(kept) and len(set(made)) == len(made)
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted(path.name for path in resumed.iterdir())
    for file in names:
        if "array_record" in file:
            assert (resumed / file).read_bytes() == (whole / file).read_bytes()
    assert manifest.verify(resumed) == len(names) - 1
    assert not list(data.glob("**/partial.*")) and not list(data.glob("**/incomplete.*"))


def test_a_flipped_byte_of_a_prepared_set_is_found(tmp_path):
    home = pathlib.Path(prepared(pictures(tmp_path / "a", 8), tmp_path / "data").data_dir)
    assert manifest.verify(home) >= 4
    (shard,) = home.glob("*train*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    with pytest.raises(DataError, match=f"{shard.name} is not as it was written"):
        manifest.verify(home)


def animate(path, levels):
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [Image.new("L", (12, 8), int(level)) for level in levels]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def test_a_folder_of_videos_is_cut_into_clips(tmp_path, capsys):
    animate(tmp_path / "a" / "up" / "1.gif", range(0, 220, 20))  # 11 frames
    animate(tmp_path / "a" / "down" / "1.gif", range(200, 0, -40))  # 5
    animate(tmp_path / "a" / "down" / "2.gif", range(200, 0, -20))  # 10
    animate(tmp_path / "a" / "down" / "still.gif", [90])
    builder = prepared(f"video_folder:{tmp_path / 'a'}", tmp_path / "data", (2, 8, 8, 1), stride=2)
    found = [r for split in sources.SPLITS for r in records(builder, split)]
    assert "still.gif: has fewer frames than a clip" in capsys.readouterr().err
    names = builder.info.features["label"].names
    clips = {}
    for record in found:
        clip = record["clip"]
        assert clip.shape == (2, 8, 8, 1) and names[record["label"]] in record["file"].decode()
        pair = tuple(int(round(level, -1)) for level in clip.mean(axis=(1, 2, 3)))
        clips.setdefault(record["file"].decode(), []).append(pair)
    assert clips == {
        "up/1.gif": [(0, 40), (80, 120)] + [(160, 200)],
        "down/1.gif": [(200, 120)],
        "down/2.gif": [(200, 160), (120, 80)],
    }
    of_split = {s: {r["file"] for r in records(builder, s)} for s in sources.SPLITS}
    assert not of_split["train"] & of_split["heldout"]


@pytest.mark.parametrize(
    ("name", "shape", "stride"),
    [("image_folder:x", (8, 8, 2), 1), ("video_folder:x", (1, 8, 8, 3), 1),
     ("weizmann", (8, 16, 12, 3), 1), ("weizmann", (18, 16, 16, 3), 3),
     ("fluent_emoji", (8, 16, 16, 1), 1)],
)  # fmt: skip
def test_shapes_that_a_set_cannot_have_are_refused(name, shape, stride, tmp_path):
    with pytest.raises(ValueError, match=r"data.shape") as error:
        table.opened(name, shape, str(tmp_path), stride=stride)
    assert not isinstance(error.value, DataError)


@pytest.mark.parametrize(
    ("code_point", "caption"),
    [
        ("1F600", "grinning face"),
        ("1F44B-1F3FD", "waving hand sign, medium skin tone"),
        ("1F468-1F3FB-200D-2764-FE0F-200D-1F468-1F3FB",
         "couple with heart: man, man, light skin tone"),
        ("1F468-1F3FB-200D-2764-FE0F-200D-1F468-1F3FF",
         "couple with heart: man, man, light and dark skin tone"),
        ("1F10D", "circled zero with slash"),  # of Unicode, and no emoji
        ("E42F", "a drawing"),  # OpenMoji's own
    ],
)  # fmt: skip
def test_captions_are_names_in_words(code_point, caption):
    assert openmoji.caption_of(code_point) == caption


def strip(frames, side=64):
    """Frames side by side, each of one grey level."""
    return Image.fromarray(np.repeat(np.asarray(frames, np.uint8), side)[None].repeat(side, 0))


def test_weizmann_splits_by_performer_and_windows_overlap_in_training(tmp_path, monkeypatch):
    import zipfile

    actions = list(weizmann.CAPTIONS)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for performer in (0, 3, 7, 8):
            number = 8 * performer + performer % 3
            levels = np.arange(52) * 4
            strip(levels).save(tmp_path / "one.webp", lossless=True)
            archive.write(tmp_path / "one.webp", f"{actions[performer % 4]}/{number:08d}.webp")
    monkeypatch.setenv(weizmann.ENVIRONMENT, str(tmp_path / "a.zip"))
    builder = prepared("weizmann", tmp_path / "data", (8, 16, 16, 1))
    train, heldout = (records(builder, split) for split in sources.SPLITS)
    assert {int(r["file"].decode()[-13:-5]) // 8 for r in train} == {0, 3}
    assert {int(r["file"].decode()[-13:-5]) // 8 for r in heldout} == {7, 8}
    assert len(train) == 2 * len(range(0, 52 - 7, 2)) and len(heldout) == 2 * (52 // 8)
    assert {r["caption"].decode() for r in train} == {
        weizmann.CAPTIONS[actions[0]], weizmann.CAPTIONS[actions[3]],
    }  # fmt: skip
    steps = np.diff(np.stack([r["clip"] for r in train]).mean(axis=(2, 3, 4)), axis=1)
    np.testing.assert_allclose(steps, 4, atol=0.5)


@pytest.mark.skipif(not weizmann.BESIDE.exists(), reason="../shared/data is not here")
def test_weizmann_archive_has_its_videos():
    found = weizmann.members(weizmann.BESIDE)
    assert len(found) == 72 and {n // 8 for _, _, n in found} == set(range(9))
    assert all(frame.size == (64, 64) for frame in weizmann.read_strip(found[0][0]))


def test_absent_or_damaged_archives_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv(weizmann.ENVIRONMENT, str(tmp_path / "none.zip"))
    with pytest.raises(DataError, match=f"set {weizmann.ENVIRONMENT} to an archive"):
        weizmann.archive_path()
    (tmp_path / "a.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"a.zip cannot be read"):
        weizmann.members(tmp_path / "a.zip")
    monkeypatch.delenv(fluent_emoji.ENVIRONMENT, raising=False)
    with pytest.raises(DataError, match=r"NRDM_FLUENT_EMOJI is not set; `npm install --prefix"):
        fluent_emoji.loops()


def test_fluent_emoji_takes_whole_loops_and_no_stills(tmp_path, monkeypatch):
    home = tmp_path / "node_modules"
    home.mkdir()
    names = ("1f600", "1f44b-1f3fd", "1f44b-1f3fe", "1f436", "1f4a1", "1f680", "1f697", "1f405")
    # Held out are groups by their hash; these are on both sides.
    assert len({openmoji.is_heldout(openmoji.group_of(n.upper())) for n in names}) == 2
    for name in names:
        frames = [Image.new("RGBA", (8, 8), (0, 0, 0, 10 * i)) for i in range(20)]
        options = {"save_all": True, "append_images": frames[1:], "lossless": True}
        frames[0].save(home / f"{name}.webp", **options)
    Image.new("RGBA", (8, 8)).save(home / "1f6d1.webp")
    monkeypatch.setenv(fluent_emoji.ENVIRONMENT, str(tmp_path))
    builder = prepared("fluent_emoji", tmp_path / "data", (5, 8, 8, 3))
    found = [r for split in sources.SPLITS for r in records(builder, split)]
    assert {r["code_point"].decode() for r in found} == {name.upper() for name in names}
    for record in found:
        levels = record["clip"].mean(axis=(1, 2, 3))
        np.testing.assert_allclose(levels, 255 - 10 * np.asarray([0, 4, 8, 12, 16]), atol=2)
    wave = next(r for r in found if r["code_point"] == b"1F44B-1F3FD")
    assert wave["caption"] == b"waving hand sign, medium skin tone"
    label = builder.info.features["label"].int2str(int(wave["label"]))
    assert label == "People & Body"


def test_a_folder_is_listed_once_a_start_and_by_one_process(tmp_path):
    shape, data_dir = (8, 8, 3), tmp_path / "data"
    name = pictures(tmp_path / "p")

    def opened(split, place=data_dir):
        return sources.open_source(
            name, split, shape=shape, num_classes=2, data_dir=str(place), in_memory_bytes=0
        )

    found: dict[str, str] = {}
    with listings.remembered(found):
        train = opened("train")
        shutil.move(tmp_path / "p", tmp_path / "away")  # whoever looks at it, fails
        heldout = opened("heldout")
    with pytest.raises(DataError, match="is no directory"):
        opened("train")
    with listings.remembered(json.loads(json.dumps(found))):
        for ours, theirs in ((opened("train"), train), (opened("heldout"), heldout)):
            assert ours.fingerprint == theirs.fingerprint
            assert ours.class_names == theirs.class_names == ("cat", "çat 日本")
            every = np.arange(len(theirs))
            np.testing.assert_array_equal(ours.gather(every)["x"], theirs.gather(every)["x"])
        with pytest.raises(DataError, match="is no directory"):
            opened("train", tmp_path / "own")  # a disk on which it is not prepared
    # Another start sees what is there by then.
    shutil.move(tmp_path / "away", tmp_path / "p")
    draw(tmp_path / "p" / "cat" / "new.png", 99)
    with listings.remembered({}):
        assert len(opened("train")) + len(opened("heldout")) == len(train) + len(heldout) + 1
