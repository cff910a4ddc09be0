"""What processes read of each kind of source: rows of the same batches, each record once."""

import itertools

import jax
import numpy as np
import pytest

from nrdm_jax.data import sources
from nrdm_jax.data.buckets import BucketLoader
from nrdm_jax.data.loader import Loader
from nrdm_jax.sharding.mesh import batch_sharding, make_mesh

COUNT, BATCH = 24, 8


def array_source(count=COUNT, shape=(4, 6, 3)):
    draw = np.random.default_rng(count)
    x = draw.integers(0, 256, (count, *shape)).astype(np.uint8)
    text = draw.standard_normal((count, 2, 3), np.float32)
    return sources.ArraySource(
        x, np.arange(count) % 3, num_classes=3, fingerprint=str(shape), further={"text": text}
    )


def latents(tmp_path):
    """Decoded to files: bfloat16 arrays, memory-mapped."""
    x = np.random.default_rng(0).standard_normal((COUNT, 2, 2, 8)).astype(jax.numpy.bfloat16)
    source = sources.ArraySource(x, np.arange(COUNT) % 3, num_classes=3, fingerprint="latents")
    return sources.decoded(source, tmp_path)


def tfds_source(tmp_path):
    """Pictures of a prepared set, decoded as they are read."""
    import tensorflow_datasets as tfds
    from PIL import Image

    class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = tfds.features.Image(shape=(4, 6, 3), encoding_format="png")
            label = tfds.features.ClassLabel(num_classes=3)
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict({"image": image, "label": label})
            )

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, x in enumerate(array_source().x):
                yield i, {"image": Image.fromarray(x), "label": i % 3}

    builder = Pictures(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    return sources.TfdsSource(builder, "train")


SOURCES = {
    "array": lambda _: array_source(),
    "latents": latents,
    "synthetic": lambda _: sources.synthetic((4, 6, 3), 3, "heldout"),
    "tfds": tfds_source,
}


def opened(kind, tmp_path, *, sharding=None, part=None, threads=1):
    """(loader, records an epoch). `part`: (number of a process, processes), which has their rows of
    each batch."""

    def loader(source, size=BATCH):
        rows = None if part is None else np.split(np.arange(size), part[1])[part[0]]
        return Loader(source, batch_size=size, seed=5, flip=True, threads=threads,
                      sharding=sharding, rows=rows)  # fmt: skip

    if kind == "buckets":
        shapes = {(4, 6, 3): 8, (8, 4, 3): 16, (2, 2, 3): 8}
        buckets = [loader(array_source(32, shape), size) for shape, size in shapes.items()]
        return BucketLoader(buckets, seed=5, threads=threads, sharding=sharding), 96
    source = SOURCES[kind](tmp_path)
    return loader(source), len(source)


KINDS = ("array", "latents", "synthetic", "tfds", "buckets")


def batches(loader, count, records_seen=0):
    """With the threads that it has, as numpy."""
    taken = itertools.islice(loader.iterate(records_seen), count)
    return [{name: np.asarray(value) for name, value in batch.items()} for batch in taken]


def steps_of(loader, records):
    return next(s for s in itertools.count() if loader.position_after(0, s) >= records)


def assert_equal(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def content(batch):
    """Of each example, with its flip undone: the lesser of it and its mirror image."""
    pairs = ((x.tobytes(), x[..., ::-1, :].tobytes()) for x in batch["x"])
    return [(str(batch["x"].shape[1:]), min(pair)) for pair in pairs]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_read_disjoint_rows_whose_union_is_each_record_once(kind, tmp_path):
    whole, records = opened(kind, tmp_path)
    steps = steps_of(whole, records)
    assert whole.position_after(0, steps) == records  # here batches do not span an epoch's end
    parts = [batches(opened(kind, tmp_path, part=(i, 2))[0], steps) for i in range(2)]
    read = [[item for batch in part for item in content(batch)] for part in parts]
    assert not set(read[0]) & set(read[1])
    assert len(set(read[0] + read[1])) == len(read[0]) + len(read[1]) == records
    # Side by side they are the batches of one process.
    joined = [
        {name: np.concatenate([a[name], b[name]]) for name in a}
        for a, b in zip(*parts, strict=True)
    ]
    assert_equal(joined, batches(whole, steps))


@pytest.mark.parametrize("kind", KINDS)
def test_neither_mesh_nor_processes_nor_threads_change_a_global_batch(kind, tmp_path):
    plain, records = opened(kind, tmp_path)
    count = steps_of(plain, records) + 2  # over the end of an epoch
    expected = batches(plain, count)
    for sizes in ({"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "context": 8}):
        mesh = make_mesh(sizes)
        other, _ = opened(kind, tmp_path, sharding=batch_sharding(mesh), threads=3)
        assert_equal(batches(other, count), expected)
    four = [batches(opened(kind, tmp_path, part=(i, 4), threads=2)[0], count) for i in range(4)]
    joined = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*four, strict=True)
    ]
    assert_equal(joined, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_going_on_is_going_on_from_where_it_was(kind, tmp_path):
    loader, _ = opened(kind, tmp_path)
    expected = batches(loader, 9)
    for step in (1, 4, 7):
        seen = loader.position_after(0, step)
        assert seen == sum(len(batch["label"]) for batch in expected[:step])
        assert_equal(batches(loader, 9 - step, seen), expected[step:])
        assert loader.position_after(seen, 2) == loader.position_after(0, step + 2)


def test_a_batch_is_on_its_devices_as_the_mesh_divides_it(tmp_path):
    mesh = make_mesh({"data": 8})
    loader, _ = opened("buckets", tmp_path, sharding=batch_sharding(mesh))
    for batch in itertools.islice(loader.iterate(0), 4):
        assert all(isinstance(value, jax.Array) for value in batch.values())
        assert batch["x"].sharding == batch_sharding(mesh)
        assert batch["x"].addressable_shards[3].data.shape[0] == batch["x"].shape[0] // 8
