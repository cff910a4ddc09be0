import collections
import itertools
import math

import numpy as np
import pytest
from PIL import Image

from nrdm_jax import build
from nrdm_jax.data import pictures, sources
from nrdm_jax.data.buckets import BucketLoader, Plan
from nrdm_jax.data.errors import DataError, NoRecordsError
from nrdm_jax.data.loader import Loader
from nrdm_jax.data.pictures import nearest
from nrdm_jax.sharding.mesh import make_mesh

RECORDS, SIZES = (100, 37, 9), (8, 12, 4)


@pytest.fixture(scope="module")
def plan():
    return Plan(RECORDS, SIZES, seed=3)


def test_a_plan_counts_what_its_steps_read(plan):
    seen = 0
    for step in range(600):
        bucket, _ = plan.at(step)
        assert plan.records_before(step) == seen and plan.step_at(seen) == step
        assert plan.step_at(seen + 1) == step + 1  # none begins in the middle of a batch
        seen += SIZES[bucket]


def test_each_bucket_has_its_batches_once_and_in_proportion_to_its_records(plan):
    epochs = 12
    steps = sum(epochs * n // b for n, b in zip(RECORDS, SIZES, strict=True))
    firsts = collections.defaultdict(list)
    for step in range(steps):
        bucket, record = plan.at(step)
        firsts[bucket].append(record)
    for bucket, (count, size) in enumerate(zip(RECORDS, SIZES, strict=True)):
        batches = epochs * count // size
        assert sorted(firsts[bucket]) == [size * i for i in range(batches)]
        read = size * batches / sum(size * len(firsts[b]) for b, size in enumerate(SIZES))
        assert read == pytest.approx(count / sum(RECORDS), abs=0.01)


def test_the_order_of_buckets_is_the_seed_s(plan):
    def order(plan):
        return [plan.at(step) for step in range(60)]

    assert order(plan) == order(Plan(RECORDS, SIZES, seed=3)) != order(Plan(RECORDS, SIZES, seed=4))
    runs = [len(list(same)) for _, same in itertools.groupby(b for b, _ in order(plan))]
    assert max(runs) < 30  # mixed, and not one bucket after the other


def test_a_plan_is_sought_in_without_what_is_before():
    large = Plan((10**6, 3 * 10**5), (256, 128), seed=0)
    step = large.step_at(10**10)
    assert 0 <= large.records_before(step) - 10**10 < 256
    assert large.step_at(large.records_before(step)) == step


SHAPES = ((32, 32, 3), (24, 40, 3), (40, 24, 3), (64, 64, 3))


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((100, 100), (64, 64, 3)),
        ((20, 20), (32, 32, 3)),
        ((480, 640), (24, 40, 3)),  # 4:3 is nearer to 5:3 than to 1:1
        ((640, 480), (40, 24, 3)),
        ((480, 560), (64, 64, 3)),
        ((1, 1000), (24, 40, 3)),
    ],
)
def test_a_picture_goes_to_the_nearest_aspect(size, shape):
    assert SHAPES[nearest(size, SHAPES)] == shape


def test_types_that_differ_are_refused():
    pair = [
        Loader(
            sources.ArraySource(np.zeros((4, 2), kind), np.zeros(4), num_classes=1, fingerprint=""),
            batch_size=2, seed=0,
        )
        for kind in (np.uint8, np.float32)
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"uint8.*float32.*several types"):
        BucketLoader(pair, seed=0)


def bucketed(config, shapes, tokens=0):
    config.data.buckets, config.data.bucket_tokens = shapes, tokens
    return config


def test_table_and_sizes_of_constant_tokens(tiny_config):
    c = bucketed(tiny_config, ((8, 8, 3), (4, 16, 3), (16, 16, 3)), tokens=64 * 2)
    records = build.training_sources(c, "/nonexistent")
    loader = build.bucket_loader(c, records, make_mesh(c.mesh))
    rows = [line.split() for line in loader.table().splitlines()]
    assert rows[1:] == [
        ["8x8x3", "512", "32", "16.0"],
        ["4x16x3", "512", "32", "16.0"],
        ["16x16x3", "512", "8", "64.0"],
    ]
    assert loader.records_a_step == pytest.approx(3 * 512 / 96)
    # Alike as they are, they are not read in the same order.
    firsts = [loader._buckets[i].batch_at(0)["label"][:8].tolist() for i in range(3)]
    assert len(set(map(tuple, firsts))) == 3


def test_unused_buckets_are_named(tiny_config, monkeypatch):
    c = bucketed(tiny_config, ((8, 8, 3), (4, 16, 3), (16, 8, 3)))

    def few(shape, num_classes, split):
        if shape == (4, 16, 3):
            raise NoRecordsError("none")
        source = original(shape, num_classes, split)
        if shape == (16, 8, 3):
            source.x = source.x[:5]
        return source

    original = sources.synthetic
    monkeypatch.setattr(sources, "synthetic", few)
    with pytest.raises(
        DataError,
        match=r"\(4, 16, 3\) has 0 records and batches of 16; \(16, 8, 3\) has 5 records .*leave",
    ) as error:
        build.training_sources(c, "/nonexistent")
    assert "(8, 8, 3)" not in str(error.value)


PICTURES = ((20, 20), (12, 44), (11, 52))  # (height, width)


def test_a_folder_has_each_picture_in_one_bucket(tiny_config, tmp_path):
    folder = tmp_path / "pictures"
    for split, count in (("train", 30), ("test", 3)):
        (folder / split).mkdir(parents=True)
        for i in range(count):
            value = np.full((*PICTURES[i % 3], 3), 8 * i, np.uint8)
            Image.fromarray(value).save(folder / split / f"{i}.png")
    c = bucketed(tiny_config, ((8, 8, 3), (4, 16, 3)))
    c.data.name, c.data.num_classes, c.train.batch_size = f"image_folder:{folder}", 1, 8
    records = build.training_sources(c, str(tmp_path))
    assert {shape: len(source) for shape, source in records.items()} == {
        (8, 8, 3): 10, (4, 16, 3): 20,
    }  # fmt: skip
    values = [source.x[:, 0, 0, 0].tolist() for source in records.values()]
    assert sorted(values[0] + values[1]) == [8 * i for i in range(30)]
    assert len(build.source(c, "heldout", str(tmp_path))) == 3
    loader = build.bucket_loader(c, records, make_mesh(c.mesh))
    seen = collections.Counter(
        int(value)
        for batch in itertools.islice(loader.iterate(0), 15)  # 4 epochs: 5 and 10 batches of 8
        for value in np.asarray(batch["x"])[:, 0, 0, 0]
    )
    assert set(seen.values()) == {4} and len(seen) == 30
    c.data.buckets += ((16, 8, 3),)
    with pytest.raises(DataError, match=r"data.buckets: \(16, 8, 3\) has 0 records"):
        build.training_sources(c, str(tmp_path))


def test_a_picture_that_lies_on_its_side_stands_in_its_bucket(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (40, 20)).save(tmp_path / "plain.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    sizes = [pictures.size_of(tmp_path / f"{n}.jpg") for n in ("turned", "plain", "broken")]
    assert sizes == [(40, 20), (20, 40), None]


@pytest.mark.slow
def test_a_set_that_is_made_at_any_shape_has_all_its_records_at_each(tiny_config, data_dir):
    c = bucketed(tiny_config, ((32, 32, 3), (16, 16, 3)))
    c.data.name, c.data.shape, c.data.num_classes = "openmoji", (32, 32, 3), 10
    records = build.training_sources(c, data_dir)
    assert [len(source) for source in records.values()] == [4072, 4072]
    batch = next(build.bucket_loader(c, records, make_mesh(c.mesh)).iterate(0))
    assert batch["x"].shape[1:] in records and math.prod(batch["label"].shape) == 16
