"""What processes read of each kind of source: rows of the same batches, each record once."""

import hashlib
import itertools
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from nrdm_jax.data import captions, latent_shards, sources
from nrdm_jax.data.buckets import BucketLoader
from nrdm_jax.data.latents import STATISTICS, Encoded, LatentSource
from nrdm_jax.data.loader import Loader
from nrdm_jax.sharding.mesh import batch_sharding, make_mesh

COUNT, BATCH = 24, 8


def array_source(count=COUNT, shape=(4, 6, 3), **further):
    draw = np.random.default_rng(count)
    x = draw.integers(0, 256, (count, *shape)).astype(np.uint8)
    text = draw.standard_normal((count, 2, 3), np.float32)
    return sources.ArraySource(
        x,
        np.arange(count) % 3,
        num_classes=3,
        fingerprint=str(shape),
        further={"extra": text, **further},
        captions=lambda indices: [f"number {i % 7}" for i in indices],
    )


def mapped(tmp_path):
    """Decoded to files: bfloat16 arrays, memory-mapped."""
    x = np.random.default_rng(0).standard_normal((COUNT, 2, 2, 8)).astype(jax.numpy.bfloat16)
    source = sources.ArraySource(x, np.arange(COUNT) % 3, num_classes=3, fingerprint="mapped")
    return sources.decoded(source, tmp_path)


def latents(tmp_path):
    """Two shards of an encoded set, whose latents are drawn anew each time: what tells them apart
    is their number."""
    if not (tmp_path / STATISTICS).exists():
        splits = {
            "train": array_source(number=np.arange(COUNT, dtype=np.int32)),
            "heldout": array_source(4, number=np.arange(4, dtype=np.int32)),
        }
        writer = latent_shards.Writer(tmp_path, (2, 3, 3), splits["train"])
        for split, source in splits.items():
            for number in range(latent_shards.shards(source)):
                writer.write(source, split, number, encode, lambda _: {})
        writer.finish(splits, fingerprint="f", weights="w")
    stored = Encoded(tmp_path, "train")
    return LatentSource(stored, stored.statistics)


def encode(x):
    mean = x[:, ::2, ::2].astype(np.float32) / 64
    return mean, np.ones_like(mean)


def captioned(table):
    records = array_source()
    different, rows = captions.different(records)
    return captions.CaptionedSource(
        captions.Unlabelled(records), rows, table(len(different)), fingerprint="table"
    )


def tokens(count):
    return captions.Tokens(np.arange(count * 5, dtype=np.int32).reshape(count, 5))


def states(count):
    ends = np.cumsum(np.arange(count) % 4)
    draw = np.random.default_rng(3)
    return captions.States(draw.standard_normal((ends[-1], 6), np.float32), ends, 4)


def with_segmentation(_):
    """Volumes that their segmentation tells: the two are mirrored together."""
    mask = np.random.default_rng(4).integers(0, 3, (COUNT, 3, 4, 5)).astype(np.uint8)
    return sources.ArraySource(
        np.stack([mask * 100, 7 * mask], axis=-1),
        np.arange(COUNT) % 3,
        num_classes=3,
        fingerprint="segmentation",
        further={"segmentation": mask},
        seen_classes=3,
    )


def prepared(name, shape, tmp_path):
    return sources.open_source(
        f"{name}:{tmp_path / 'items'}",
        "train",
        shape=shape,
        num_classes=3,
        data_dir=str(tmp_path / "prepared"),
        in_memory_bytes=0,
    )


def items(tmp_path, count, write):
    """Files in three folders of classes, and one that is held out."""
    for i in range(count):
        for path in [f"train/{i % 3}/{i}", *(["val/0/0"] if i == 0 else [])]:
            file = tmp_path / "items" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            if not any(file.parent.glob(f"{file.name}.*")):
                write(file, i)


def image_folder(tmp_path):
    from PIL import Image

    x = array_source().x
    items(tmp_path, COUNT, lambda file, i: Image.fromarray(x[i]).save(f"{file}.png"))
    return prepared("image_folder", (4, 6, 3), tmp_path)


def video_folder(tmp_path):
    """Clips of two frames."""
    from PIL import Image

    def write(file, i):
        first, second = (Image.fromarray(np.full((8, 8, 3), grey + 8 * i, np.uint8))
                         for grey in (10, 50))  # fmt: skip
        first.save(f"{file}.gif", save_all=True, append_images=[second], duration=100)

    items(tmp_path, COUNT, write)
    return prepared("video_folder", (2, 8, 8, 3), tmp_path)


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
    "mapped": mapped,
    "synthetic": lambda _: sources.synthetic((4, 6, 3), 3, "heldout"),
    "tfds": tfds_source,
    "latents": latents,
    "tokens": lambda _: captioned(tokens),
    "states": lambda _: captioned(states),
    "segmentation": with_segmentation,
    "image_folder": image_folder,
    "video_folder": video_folder,
}


def opened(kind, tmp_path, *, sharding=None, part=None, threads=1):
    """(loader, records an epoch). `part`: (number of a process, processes), which has their rows of
    each batch."""

    def loader(source, size=BATCH):
        rows = None if part is None else np.split(np.arange(size), part[1])[part[0]]
        read = source.drawn(5) if isinstance(source, LatentSource) else None
        return Loader(source, batch_size=size, seed=5, flip=True, threads=threads,
                      sharding=sharding, rows=rows, read=read)  # fmt: skip

    if kind == "buckets":
        shapes = {(4, 6, 3): 8, (8, 4, 3): 16, (2, 2, 3): 8}
        buckets = [loader(array_source(32, shape), size) for shape, size in shapes.items()]
        return BucketLoader(buckets, seed=5, threads=threads, sharding=sharding), 96
    source = SOURCES[kind](tmp_path)
    return loader(source), len(source)


KINDS = (*SOURCES, "buckets")


def batches(loader, count, records_seen=0):
    """With the threads that it has, as numpy."""
    taken = itertools.islice(loader.iterate(records_seen), count)
    return [{name: np.asarray(value) for name, value in batch.items()} for batch in taken]


def steps_of(loader, records):
    return next(s for s in itertools.count() if loader.records_after(0, s) >= records)


def assert_equal(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def content(batch):
    """What tells each example: its number, or all of it with its flip undone, the lesser of it and
    its mirror image."""
    if "number" in batch:
        return batch["number"].tolist()
    x, seen = batch["x"], batch.get("segmentation", batch["x"][..., 0])
    return [
        min((x.tobytes(), seen.tobytes()), (x[..., ::-1, :].tobytes(), seen[..., ::-1].tobytes()))
        for x, seen in zip(x, seen, strict=True)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_read_disjoint_rows_whose_union_is_each_record_once(kind, tmp_path):
    whole, records = opened(kind, tmp_path)
    steps = steps_of(whole, records)
    assert whole.records_after(0, steps) == records  # here batches do not span an epoch's end
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
        seen = loader.records_after(0, step)
        assert seen == sum(len(batch["label"]) for batch in expected[:step])
        assert_equal(batches(loader, 9 - step, seen), expected[step:])
        assert loader.records_after(seen, 2) == loader.records_after(0, step + 2)


def test_a_batch_is_on_its_devices_as_the_mesh_divides_it(tmp_path):
    mesh = make_mesh({"data": 8})
    loader, _ = opened("buckets", tmp_path, sharding=batch_sharding(mesh))
    for batch in itertools.islice(loader.iterate(0), 4):
        assert all(isinstance(value, jax.Array) for value in batch.values())
        assert batch["x"].sharding == batch_sharding(mesh)
        assert batch["x"].addressable_shards[3].data.shape[0] == batch["x"].shape[0] // 8


ROOT = pathlib.Path(__file__).parents[2]
APART = ("buckets", "image_folder", "latents", "segmentation", "states")
STEPS = 6  # over the end of an epoch


def digests(rows):
    """{name: of each row}, of arrays by their name."""
    return {
        name: [hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest() for row in values]
        for name, values in rows.items()
    }


def read_apart(tmp_path, port, process):
    """One of two processes with two devices each: a line of JSON, of each kind and step the rows
    that are here and their digests."""
    from nrdm_jax.processes import distributed

    distributed.start(f"127.0.0.1:{port}", 2, process)
    sharding = batch_sharding(make_mesh({"data": 2, "fsdp": 2}))
    found = {}
    for kind in APART:
        loader, _ = opened(kind, tmp_path / kind, sharding=sharding, threads=2)
        found[kind] = []
        for batch in itertools.islice(loader.iterate(0), STEPS):
            here = sorted(batch["x"].addressable_shards, key=lambda shard: shard.index[0].start)
            numbers = [i for shard in here for i in range(*shard.index[0].indices(BATCH * 2))]
            rows = {
                name: np.concatenate([
                    np.asarray(shard.data) for shard in
                    sorted(value.addressable_shards, key=lambda shard: shard.index[0].start)
                ])
                for name, value in batch.items()
            }  # fmt: skip
            found[kind].append([numbers[: len(rows["x"])], digests(rows)])
    (tmp_path / f"{process}.json").write_text(json.dumps(found))
    distributed.leave(0)


def test_processes_that_were_started_apart_read_the_rows_of_one(tmp_path):
    expected = {}
    for kind in APART:  # and so prepares what is read from files
        (tmp_path / kind).mkdir()
        expected[kind] = batches(opened(kind, tmp_path / kind)[0], STEPS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path), str(port), str(i)],
            cwd=ROOT,
            env=dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT),
                     XLA_FLAGS="--xla_force_host_platform_device_count=2"),
        )
        for i in range(2)
    ]  # fmt: skip
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    found = [json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2)]
    for kind in APART:
        for step, batch in enumerate(expected[kind]):
            whole, seen = digests(batch), []
            for part in found:
                numbers, rows = part[kind][step]
                assert rows == {name: [values[i] for i in numbers]
                                for name, values in whole.items()}  # fmt: skip
                seen += numbers
            assert sorted(seen) == list(range(len(batch["x"])))


if __name__ == "__main__":
    read_apart(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
