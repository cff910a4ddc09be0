"""A data set of latents: written whole by any number of processes, resumed, and drawn from."""

import json
import os

import ml_dtypes
import numpy as np
import pytest
import scipy.stats

from nrdm_jax.data import latent_shards, latents
from nrdm_jax.data.errors import DataError
from nrdm_jax.data.loader import Loader
from nrdm_jax.data.sources import ArraySource, decoded

SHAPE = (2, 2, 3)


def encode(x):
    """Pixels (n, 4, 4, 1) -> 2 x 2 x 3, of other means and spreads a channel."""
    half = x[:, ::2, ::2].astype(np.float32)
    mean = np.concatenate([half, 3 * half + 5, -half], axis=-1)
    return mean, np.full_like(mean, 0.5) * np.asarray([1, 0, 2], np.float32)


def no_texts(indices):
    return {"name": [f"record {i}" for i in indices]}


@pytest.fixture
def sources(monkeypatch):
    monkeypatch.setattr(latent_shards, "SHARD", 8)
    draw = np.random.default_rng(0)

    def source(count):
        return ArraySource(
            draw.integers(0, 255, (count, 4, 4, 1)).astype(np.uint8),
            np.arange(count) % 3,
            num_classes=3,
            class_names=("a", "b", "c"),
            fingerprint=f"f{count}",
            further={"tokens": np.arange(2 * count, dtype=np.int32).reshape(count, 2)},
        )

    return {"train": source(35), "heldout": source(5)}


def write(directory, sources, process=0, processes=1, of=encode, finish=True):
    writer = latent_shards.Writer(directory, SHAPE, sources["train"], ("name",))
    for split, source in sources.items():
        for number in range(process, latent_shards.shards(source), processes):
            writer.write(source, split, number, of, no_texts)
    return writer.finish(sources, fingerprint="f", weights="w") if finish else None


def test_bits_are_those_of_bfloat16():
    x = np.asarray([1.0, -2.5, 3.14159, 1e-20, 0.0], np.float32)
    np.testing.assert_array_equal(latents.of_bits(latents.to_bits(x)), x.astype(ml_dtypes.bfloat16))
    assert latents.to_bits(x).dtype == np.uint16


def test_a_set_has_every_record_once_with_all_that_it_had(sources, tmp_path):
    import tensorflow_datasets as tfds

    statistics = write(tmp_path / latents.VERSION, sources)
    builder = tfds.builder_from_directory(tmp_path / latents.VERSION)
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
        "train": 35, "heldout": 5,
    }  # fmt: skip
    assert builder.info.metadata["weights"] == "w" and statistics.fingerprint == "f"
    assert builder.as_data_source("train")[9]["name"] == b"record 9"
    for split, source in sources.items():
        stored = latents.Encoded(tmp_path / latents.VERSION, split)
        assert (len(stored), stored.class_names) == (len(source), ("a", "b", "c"))
        found, wanted = (s.gather(np.arange(len(source))) for s in (stored, source))
        mean, std = encode(wanted["x"])
        np.testing.assert_array_equal(found["x"], latents.to_bits(mean))
        np.testing.assert_array_equal(found["std"], latents.to_bits(std))
        for name in ("label", "tokens"):
            np.testing.assert_array_equal(found[name], wanted[name])
    # Apart from the noise: the variance of a draw is that of the means and of the noise.
    mean, std = encode(sources["train"].x)
    np.testing.assert_allclose(statistics.shift, mean.mean((0, 1, 2)), rtol=1e-5)
    variance = mean.var((0, 1, 2)) + (std**2).mean((0, 1, 2))
    np.testing.assert_allclose(statistics.scale, variance**-0.5, rtol=1e-5)
    z = np.random.default_rng(0).standard_normal((4, *SHAPE)).astype(np.float32)
    np.testing.assert_allclose(statistics.latents(statistics.normed(z)), z, rtol=1e-4, atol=1e-4)


def test_shards_of_large_records_have_fewer(sources, tmp_path, monkeypatch):
    assert latent_shards.per_shard((8, 8, 3)) == 8
    monkeypatch.setattr(latent_shards, "SHARD", 512)
    assert latent_shards.per_shard((64, 64, 3)) == 512
    assert latent_shards.per_shard((64, 512, 512, 3)) == 5
    assert latent_shards.per_shard((1024, 1024, 1024, 1)) == 1
    monkeypatch.setattr(latent_shards, "NUMBERS", 4 * 4 * 10)
    asked = []

    def counted(x):
        asked.append(len(x))
        return encode(x)

    write(tmp_path / latents.VERSION, sources, of=counted)
    assert asked == [10, 10, 10, 5, 5]
    stored = latents.Encoded(tmp_path / latents.VERSION, "train")
    found = stored.gather(np.arange(35))
    np.testing.assert_array_equal(found["x"], latents.to_bits(encode(sources["train"].x)[0]))


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_two_processes_write_what_one_does(sources, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    write(one, sources)
    write(two, sources, 1, 2, finish=False)
    seen = {path.name for path in two.iterdir() if "array_record" in path.name}
    write(two, sources, 0, 2)
    assert 0 < len(seen) < len(contents(two)) and contents(one) == contents(two)


def test_what_was_cut_short_goes_on_and_whole_shards_stay(sources, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    write(whole, sources)
    calls = []

    def killed(x):
        calls.append(len(x))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(x)

    with pytest.raises(KeyboardInterrupt):
        write(cut, sources, of=killed)
    with pytest.raises(DataError, match="no statistics of latents"):
        latents.Encoded(cut, "train")  # not whole
    # A kill between the sums and the records leaves a partial file, and the shard to do.
    name = "latents-train.array_record-00002-of-00005"
    (cut / f"{name}.1.partial").write_text("half")
    (cut / f"sums-{name}.json").write_text("{}")
    calls.clear()

    def counted(x):
        calls.append(len(x))
        return encode(x)

    write(cut, sources, of=counted)
    assert calls == [8, 8, 3, 5]  # shards 2 to 4 of 5, and the held-out one
    found = contents(cut)
    del found[f"{name}.1.partial"]
    assert found == contents(whole)


def test_a_directory_is_of_the_latents_of_one_set(sources, tmp_path):
    home = tmp_path / latents.VERSION
    latent_shards.bind(home, "f", "pictures")
    assert latent_shards.bound(home) == {"fingerprint": "f", "data": "pictures"}
    latent_shards.bind(home, "f", "pictures")
    with pytest.raises(ValueError, match="latents of f, and .*=other .* are g; give another"):
        latent_shards.bind(home, "g", "other")
    write(tmp_path / "unbound", sources, finish=False)
    with pytest.raises(ValueError, match="something it does not note"):
        latent_shards.bind(tmp_path / "unbound", "f", "pictures")
    (home / latent_shards.BOUND).write_text("[]")
    with pytest.raises(DataError, match="does not say whose latents"):
        latent_shards.bind(home, "f", "pictures")


def test_latents_that_are_not_finite_are_no_data(sources, tmp_path):
    with pytest.raises(DataError, match="records 0 to 7 are not all finite"):
        write(tmp_path, sources, of=lambda x: (encode(x)[0] * np.nan, encode(x)[1]))


@pytest.fixture
def source(sources, tmp_path):
    statistics = write(tmp_path / "v", sources)
    stored = decoded(latents.Encoded(tmp_path / "v", "train"), tmp_path / "decoded")
    return latents.LatentSource(stored, statistics)


def test_draws_are_of_unit_variance_and_a_function_of_seed_and_record(source, sources):
    many = np.tile(np.arange(35), 60)
    x = source.drawn(0)(many, np.arange(len(many)))["x"]
    np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=0.02)
    np.testing.assert_allclose(x.var((0, 1, 2)), 1, atol=0.04)
    batches = [
        Loader(source, batch_size=size, seed=3, read=source.drawn(3), rows=rows)
        for size, rows in ((8, None), (4, None), (8, range(4, 8)))
    ]
    whole = batches[0].batch_at(32)
    assert set(whole) == {"x", "label", "tokens"}
    halves = [batches[1].batch_at(32 + start) for start in (0, 4)]
    for name, values in whole.items():
        np.testing.assert_array_equal(values, np.concatenate([h[name] for h in halves]))
        np.testing.assert_array_equal(values[4:], batches[2].batch_at(32)[name])
    # The same record has other noise in another epoch, and with another seed.
    one, again = (source.drawn(0)(np.asarray([5]), np.asarray([r]))["x"] for r in (5, 40))
    other = source.drawn(1)(np.asarray([5]), np.asarray([5]))["x"]
    assert not np.array_equal(one, again) and not np.array_equal(one, other)
    # What is measured gets the means.
    wanted = source.statistics.normed(encode(sources["train"].x[[5]])[0])
    np.testing.assert_allclose(source.gather(np.asarray([5]))["x"], wanted, rtol=0.02, atol=0.02)
    # A channel without spread has none.
    np.testing.assert_array_equal(one[..., 1], again[..., 1])


def test_the_noise_of_a_record_is_its_own():
    records = np.asarray([5, 0, 2**40, 5])
    found = latents.noise_of(records, (30, 30, 3), 0)
    np.testing.assert_array_equal(found[0], found[3])
    np.testing.assert_array_equal(found[2:3], latents.noise_of(records[2:3], (30, 30, 3), 0))
    different = [*found[:3], latents.noise_of(records[:1], (30, 30, 3), 1)[0]]
    correlation = np.corrcoef([one.ravel() for one in different])
    assert np.abs(correlation - np.eye(4)).max() < 0.1  # 2,700 numbers: five standard errors
    # A record of a number of numbers that no word holds, and of as many more, begins alike.
    small = latents.noise_of(records, (5,), 0)
    np.testing.assert_array_equal(small, latents.noise_of(records, (9,), 0)[:, :5])
    many = latents.noise_of(np.arange(40), (10_000,), 0).ravel()
    assert scipy.stats.kstest(many, "norm").pvalue > 0.01
    np.testing.assert_allclose((many**4).mean(), 3, atol=0.08)  # five standard errors


def test_statistics_survive_their_file(source, tmp_path):
    source.statistics.write(tmp_path / "s.json")
    assert latents.Statistics.read(tmp_path / "s.json") == source.statistics
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []
    (tmp_path / "s.json").write_text(json.dumps({"shift": [1.0]}))
    with pytest.raises(DataError, match=os.fspath(tmp_path)):
        latents.Statistics.read(tmp_path / "s.json")
