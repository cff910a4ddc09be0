import gzip
import itertools
import pathlib
import struct
import tarfile
import tempfile
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from nrdm_jax.data import sources
from nrdm_jax.data.builders import (
    cifar10,
    fashion_mnist,
    moving_emoji,
    openmoji,
    solids,
    table,
)
from nrdm_jax.data.errors import DataError


def opened(name, split, data_dir, shape=(32, 32, 3), num_classes=10, memory=2**31):
    return sources.open_source(
        name, split, shape=shape, num_classes=num_classes, data_dir=data_dir, in_memory_bytes=memory
    )


@pytest.mark.parametrize(
    ("code_point", "group"),
    [
        ("1F44B-1F3FD", "1F44B"),
        ("2764-FE0F", "2764"),
        ("1F468-1F3FB-200D-2764-FE0F-200D-1F468-1F3FF", "1F468-200D-2764-200D-1F468"),
        ("1F3FB", "1F3FB"),
    ],
)
def test_groups_ignore_tones_and_selectors(code_point, group):
    assert openmoji.group_of(code_point) == group


class Failing:
    """Records of which the first reads fail, in the library's words."""

    def __init__(self, records, times):
        self._records, self._times = records, times

    def __getitems__(self, places):
        if self._times:
            self._times -= 1
            raise ValueError("INTERNAL: crc\nat 0x7f")
        return self._records.__getitems__(places)


class TestOpenmoji:
    def test_counts_and_split_by_group(self, data_dir):
        train, heldout = (opened("openmoji", s, data_dir, memory=0) for s in sources.SPLITS)
        assert (len(train), len(heldout)) == (4072, 423)
        assert train.class_names == openmoji.CLASSES
        groups = []
        for source in (train, heldout):
            records = source._records.read(list(range(0, len(source), 3)))
            groups.append({openmoji.group_of(r["code_point"].decode()) for r in records})
        assert not groups[0] & groups[1]
        names = {r["name"] for r in records}
        assert len(names) > 50

    def test_a_label_out_of_range_is_named_by_its_record(self, data_dir):
        source = opened("openmoji", "heldout", data_dir, memory=0)
        places = np.arange(400, 420)
        label = source.gather(places)["label"]
        source.num_classes = int(label.max())
        with pytest.raises(DataError, match=f"record {places[label.argmax()]} has label"):
            source.gather(places)

    def test_what_can_be_read_the_next_time_is_no_damage(self, data_dir, capsys):
        source = opened("openmoji", "heldout", data_dir, memory=0)
        wanted = source.gather(np.asarray([3, 5]))
        source._records._records = Failing(source._records._records, times=2)
        found = source.gather(np.asarray([3, 5]))
        assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
        assert "could be when it was read again: INTERNAL: crc" in capsys.readouterr().err
        source._records._records = Failing(source._records._records, times=99)
        with pytest.raises(DataError, match="split heldout: record 3 is damaged: INTERNAL: crc"):
            source.gather(np.asarray([3, 5]))

    def test_decoded_arrays_are_the_records(self, data_dir):
        lazy, fast = (opened("openmoji", "heldout", data_dir, memory=m) for m in (0, 2**31))
        assert isinstance(lazy, sources.TfdsSource) and isinstance(fast, sources.ArraySource)
        some = np.arange(0, 423, 20)
        one, other = lazy.gather(some), fast.gather(some)
        assert set(one) == set(other)
        for name, values in one.items():
            np.testing.assert_array_equal(values, other[name])
        assert lazy.fingerprint == fast.fingerprint

    def test_wrong_shape_or_classes_name_the_field(self, data_dir):
        with pytest.raises(ValueError, match="data.shape"):
            opened("openmoji", "train", data_dir, shape=(32, 30, 3))
        with pytest.raises(ValueError, match="data.num_classes is 11"):
            opened("openmoji", "train", data_dir, num_classes=11)


def test_a_set_that_is_opened_leaves_nothing_elsewhere(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    builder = table.opened("solids", None, str(tmp_path / "data"))
    assert not builder.is_prepared() and not list(elsewhere.iterdir())


def test_a_preparation_that_fails_leaves_nothing_that_looks_prepared(tmp_path, monkeypatch):
    calls = []

    def broken(path, size):
        calls.append(path)
        if len(calls) > 30:
            raise DataError(f"{path} cannot be rendered")
        return original(path, size)

    original = openmoji.render
    monkeypatch.setattr(openmoji, "render", broken)
    with pytest.raises(DataError, match="cannot be rendered"):
        table.prepared("openmoji", (8, 8, 3), str(tmp_path))
    few = sorted(openmoji._directory().glob("*.svg"))[:60]
    monkeypatch.setattr(openmoji, "render", original)
    monkeypatch.setattr(openmoji, "_directory", lambda: Folder(few))
    source = opened("openmoji", "train", str(tmp_path), shape=(8, 8, 3))
    assert 40 < len(source) <= 60 and source.shape == (8, 8, 3)


class Folder:
    def __init__(self, paths):
        self.paths = paths

    def glob(self, _):
        return self.paths


def idx(array):
    return (
        struct.pack(">HBB", 0, 8, array.ndim)
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def test_fashion_mnist_from_idx_files(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    for prefix, count in (("train", 20), ("t10k", 6)):
        images = draw.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        labels = (np.arange(count) % 10).astype(np.uint8)
        with gzip.open(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(idx(labels))
    monkeypatch.setattr(fashion_mnist, "DIRECTORY", tmp_path)
    train = opened("fashion_mnist", "train", str(tmp_path / "data"), shape=(32, 32, 1))
    assert len(train) == 20 and train.shape == (32, 32, 1)
    assert not np.any(train.x[:, :2]) and np.any(train.x[:, 2])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x00\x00\x08\x01\x00\x00\x00\x05ab", "holds"),
        (b"GIF89a", "no IDX file"),
        (None, "apt-get install"),
    ],
)
def test_damaged_or_absent_idx(tmp_path, content, says):
    path = tmp_path / "file"
    if content:
        path.write_bytes(content)
    with pytest.raises(DataError, match=says):
        fashion_mnist.read_idx(path)


def test_absent_cifar10_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv(cifar10.ENVIRONMENT, str(tmp_path / "none.tar"))
    with pytest.raises(DataError, match=f"set {cifar10.ENVIRONMENT}.*tfds:cifar10"):
        cifar10.archive_path()


def test_damaged_cifar10_archive(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(DataError, match=r"a.tar cannot be read"):
        list(cifar10.members(tmp_path / "a.tar"))
    with pytest.raises(DataError, match=r"train/dog/1.jpg: cannot be decoded"):
        cifar10.decode(tmp_path / "a.tar", "train/dog/1.jpg", b"no picture")


def tar_of(path, *members):
    """(name, content, format) of each."""
    with open(path, "wb") as file:
        for name, content, form in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.write(member.tobuf(form) + content + bytes(-len(content) % 512))
        file.write(bytes(1024))
    return path


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_in_a_cifar10_archive_are_read(tmp_path, form):
    long, short = "train/dog/" + "é" * 1900 + ".jpg", "test/cat/1.jpg"
    archive = tar_of(tmp_path / "a.tar", (long, b"a" * 700, form), (short, b"b", form))
    assert list(cifar10.members(archive)) == [
        (long, ("train", "dog"), b"a" * 700),
        (short, ("test", "cat"), b"b"),
    ]


def test_empty_members_of_an_archive_count_and_are_not_kept(tmp_path, monkeypatch):
    archive = tar_of(tmp_path / "a.tar", *[("x", b"", tarfile.GNU_FORMAT)] * 2000)
    tracemalloc.start()
    try:
        assert not list(cifar10.members(archive))
        assert tracemalloc.get_traced_memory()[1] < 2**19
    finally:
        tracemalloc.stop()
    monkeypatch.setattr(cifar10, "MOST_UNPACKED", 2**19)
    with pytest.raises(DataError, match="unpacks to more than 524,288"):
        list(cifar10.members(archive))


def test_a_name_of_less_than_no_bytes_in_an_archive_is_refused(tmp_path):
    member = tarfile.TarInfo("train/dog/1.jpg")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, -512
    (tmp_path / "a.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(DataError, match="has -512 bytes"):
        list(cifar10.members(tmp_path / "a.tar"))


@pytest.mark.skipif(not cifar10.BESIDE.exists(), reason="../shared/data is not here")
def test_cifar10_archive_has_its_pictures():
    assert len(list(itertools.islice(cifar10.members(cifar10.BESIDE), 50))) == 50
    _, (split, label), data = next(cifar10.members(cifar10.BESIDE))
    assert split in ("train", "test") and label in cifar10.CLASSES
    assert cifar10.decode(cifar10.BESIDE, "x", data).size == (32, 32)


def test_unprepared_tfds_name_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=f"tfds:imagenet.*{tmp_path}.*TFDS_DATA_DIR"):
        opened("tfds:imagenet256_latents", "train", str(tmp_path))


def test_prepared_tfds_latents_are_read(tmp_path):
    import tensorflow_datasets as tfds

    class Latents(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "latent": tfds.features.Tensor(shape=(4, 4, 2), dtype=np.float32),
                        "label": tfds.features.ClassLabel(num_classes=3),
                    }
                ),
            )

        def _split_generators(self, _):
            return {"train": self._generate_examples(7), "test": self._generate_examples(3)}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"latent": np.full((4, 4, 2), i, np.float32), "label": i % 3}

    Latents(data_dir=tmp_path, file_format="array_record").download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    source = opened("tfds:latents", "train", str(tmp_path), shape=(4, 4, 2), num_classes=3)
    assert len(source) == 7 and source.dtype == np.float32
    assert sorted(source.x[:, 0, 0, 0]) == list(range(7))
    assert len(opened("tfds:latents", "heldout", str(tmp_path), (4, 4, 2), 3)) == 3


def test_unknown_name():
    with pytest.raises(ValueError, match="data.name is 'openmojis'; choose one of openmoji"):
        opened("openmojis", "train", str(pathlib.Path("/nonexistent")))


def middle_of_mass(frame):
    """(across, down) of what is not white, over the side."""
    ink = 255.0 - frame.mean(axis=-1)
    places = (np.arange(frame.shape[0]) + 0.5) / frame.shape[0]
    return np.asarray([(ink.sum(0) * places).sum(), (ink.sum(1) * places).sum()]) / ink.sum()


def dot(side=64):
    """A black disc on white, somewhat right of the middle."""
    y, x = np.mgrid[:side, :side] / side
    inside = (x - 0.65) ** 2 + (y - 0.5) ** 2 < 0.2**2
    return Image.fromarray(np.where(inside[..., None], 0, 255).astype(np.uint8).repeat(3, -1))


@pytest.mark.parametrize(
    ("motion", "moved"),
    [("right", (0.5, 0)), ("left", (-0.5, 0)), ("down", (0, 0.5)), ("up", (0, -0.5))],
)
def test_clips_move_half_the_frame_the_way_they_are_labelled(motion, moved):
    frames = moving_emoji.clip(dot(), motion, 8, 48, np.asarray([0.5, 0.5]))
    assert frames.shape == (8, 48, 48, 3) and frames.dtype == np.uint8
    way = middle_of_mass(frames[-1]) - middle_of_mass(frames[0])
    np.testing.assert_allclose(way, moved, atol=0.02)


def test_clips_turn_a_quarter_and_double_in_size():
    def clip(motion):
        return moving_emoji.clip(dot(), motion, 8, 48, np.asarray([0.5, 0.5]))

    turned = clip("clockwise")
    # to the right of the middle at first, below it at last (the axis down is the second)
    first, last = (middle_of_mass(f) - 0.5 for f in (turned[0], turned[-1]))
    assert first[0] > 0.05 and abs(first[1]) < 0.02
    np.testing.assert_allclose(last, [0, first[0]], atol=0.02)
    np.testing.assert_allclose(
        middle_of_mass(clip("anticlockwise")[-1]) - 0.5, [0, -first[0]], atol=0.02
    )
    ink = [(255.0 - f).sum() for f in clip("growing")]
    assert ink[-1] / ink[0] == pytest.approx(4.0, rel=0.1)
    np.testing.assert_allclose(ink[::-1], [(255.0 - f).sum() for f in clip("shrinking")], rtol=0.1)


def test_solids_have_the_volume_of_their_kind():
    def same_every_time(kind):
        return [solids.solid(kind, 24, np.random.default_rng([0, i])) for i in range(6)]

    for kind in solids.KINDS:
        for density in same_every_time(kind):
            assert density.shape == (24, 24, 24)
            assert density.min() == 0 and density.max() == 1
            assert 0.005 < density.mean() < 0.25
    for i in range(6):
        draw = np.random.default_rng([0, i])
        draw.uniform(-0.25, 0.25, 3), draw.standard_normal((3, 3))
        radius = draw.uniform(0.35, 0.65)
        volume = same_every_time("ball")[i].mean() * 2**3
        assert volume == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.03)


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("moving_emoji", (4, 16, 16, 3), 8), ("solids", (8, 8, 8, 1), 4)],
)
def test_clips_and_volumes_are_prepared_and_read(name, shape, classes, tmp_path, monkeypatch):
    monkeypatch.setattr(solids, "COUNTS", {"train": 12, "heldout": 8})
    some = openmoji.drawings()[:90]
    monkeypatch.setattr(moving_emoji, "drawings", lambda: some)
    train, heldout = (opened(name, s, str(tmp_path), shape, classes) for s in sources.SPLITS)
    records = train.gather(np.arange(len(train)))
    x, label = records["x"], records["label"]
    assert x.shape[1:] == shape and x.dtype == np.uint8 and set(label) <= set(range(classes))
    assert len(heldout) and x.reshape(len(x), -1).std(axis=1).min() > 0
    with pytest.raises(ValueError, match="data.shape"):
        opened(name, "train", str(tmp_path), (8, 9, 10, 3), classes)
