"""A small source of each kind, read as runs read it; and, as a program, a process that says which
rows of which batches it read, for `shards_test`.

python tests/data/source_kinds.py HOME PORT PROCESS PROCESSES OUT
"""

import functools
import hashlib
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Callable

import jax
import ml_dtypes
import numpy as np
from PIL import Image

from nrdm_jax.data import captions, latent_shards, latents, listings, sources
from nrdm_jax.data.buckets import BucketLoader
from nrdm_jax.data.builders import hippocampus
from nrdm_jax.data.loader import Loader
from nrdm_jax.data.stored import once
from nrdm_jax.processes import distributed
from nrdm_jax.sharding.mesh import batch_sharding, make_mesh
from nrdm_jax.text import tokens as tokenizing

COUNT, BATCH, SEED, CLASSES = 24, 8, 5, 3
PICTURE = (4, 6, 3)
SHAPES = {PICTURE: 8, (8, 4, 3): 16, (2, 2, 3): 8}  # of buckets: their batches
# The batch over all devices, over the processes of two with copies in each, and whole on each.
MESHES = ({"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "context": 8})
SPLIT = MESHES[1:]  # that two processes are given


def array_source(count=COUNT, shape=PICTURE):
    draw = np.random.default_rng(count)
    x = draw.integers(0, 256, (count, *shape)).astype(np.uint8)
    return sources.ArraySource(
        x, np.arange(count) % CLASSES, num_classes=CLASSES, fingerprint=str(shape),
        further={"text": draw.standard_normal((count, 2, 3), np.float32)},
        captions=lambda indices: [f"a drawing of number {i % 7}" for i in indices],
    )  # fmt: skip


def mapped(home):
    """Decoded to files: bfloat16 arrays, memory-mapped."""
    x = np.random.default_rng(0).standard_normal((COUNT, 2, 2, 8)).astype(ml_dtypes.bfloat16)
    source = sources.ArraySource(
        x, np.arange(COUNT) % CLASSES, num_classes=CLASSES, fingerprint="mapped"
    )
    return sources.decoded(source, home / "decoded")


def encoded(home, in_memory=False):
    """A set of latents on disk, as `encode` writes it; those in their first channel have no
    spread."""
    pixels = array_source()

    def encode(x):
        mean = np.random.default_rng(x.astype(int).sum()).standard_normal((len(x), 2, 3, 4))
        return mean, np.full_like(mean, 0.5) * np.asarray([0, 1, 2, 3])

    def write(folder):
        writer = latent_shards.Writer(folder, (2, 3, 4), pixels, ("caption",))
        writer.write(pixels, "train", 0, encode, lambda i: {"caption": pixels.captions(i)})
        writer.finish({"train": pixels}, fingerprint="pixels", weights="weights")

    place = once(home / "latents" / latents.VERSION, write)
    stored = latents.Encoded(place, "train")
    return (sources.decoded(stored, home / "decoded") if in_memory else stored), stored.statistics


def latent_set(home):
    """Read from the disk with every batch, and drawn from."""
    return latents.LatentSource(*encoded(home))


def captioned_latents(home):
    """In memory, with the states of their captions, which are kept on disk."""
    stored, statistics = encoded(home, in_memory=True)
    different, rows = captions.different(stored)
    tokens, _ = tokenizing.of_bytes(different, 24)

    def encode(tokens):
        states = np.stack([tokens, np.sqrt(tokens)], -1, dtype=np.float32)
        return states, states.sum(axis=1)

    table = captions.encoded(tokens, encode, home / "texts", different)
    told = captions.CaptionedSource(captions.Unlabelled(stored), rows, table, fingerprint="states")
    return latents.LatentSource(told, statistics)


def captioned(_):
    different, rows = captions.different(array_source())
    table = captions.Tokens(tokenizing.of_bytes(different, 20)[0])
    return captions.CaptionedSource(array_source(), rows, table, fingerprint="tokens")


def tfds_source(home):
    """Pictures of a set that TFDS itself has made, decoded as they are read."""
    import tensorflow_datasets as tfds

    class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = tfds.features.Image(shape=PICTURE, encoding_format="png")
            label = tfds.features.ClassLabel(num_classes=CLASSES)
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict({"image": image, "label": label})
            )

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, x in enumerate(array_source().x):
                yield i, {"image": Image.fromarray(x), "label": i % CLASSES}

    builder = Pictures(data_dir=home / "tfds", file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    return sources.TfdsSource(builder, "train")


def opened_set(home, name, shape, *, classes=CLASSES, in_memory=False, **options):
    return sources.open_source(
        name, "train", shape=shape, num_classes=classes, data_dir=str(home / "prepared"),
        in_memory_bytes=2**30 if in_memory else 0, **options,
    )  # fmt: skip


def folder_of(home, name, suffix, frames, sizes):
    """Files of noise, in classes, of (width, height) in turn; one a class is held out."""
    draw = np.random.default_rng(0)

    def write(folder):
        for i in range(-CLASSES, len(sizes)):
            file = (
                folder / ("train" if i >= 0 else "test") / f"class {i % CLASSES}" / f"{i}{suffix}"
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            width, height = sizes[i]
            noise = draw.integers(0, 256, (frames, height, width, 3), np.uint8)
            first, *others = map(Image.fromarray, noise)
            first.save(file, **({"save_all": True, "append_images": others} if others else {}))
            file.with_suffix(".txt").write_text(f"noise {i % 5}")

    return once(home / name, write)


def image_folder(home, among=(), shape=PICTURE):
    """Those of wide and of high pictures are as many."""
    place = folder_of(home, "pictures", ".png", 1, [(6, 4), (4, 8)] * 16)
    return opened_set(home, f"image_folder:{place}", shape, among=among)


def video_folder(home):
    """Two clips a file."""
    place = folder_of(home, "videos", ".gif", 7, [(6, 4)] * (COUNT // 2))
    return opened_set(home, f"video_folder:{place}", (3, *PICTURE))


def volumes(home, in_memory=False):
    """Scans with what is drawn in."""
    numbers = [f"{i:03d}" for i in range(100)]
    train = [number for number in numbers if not hippocampus.is_heldout(number)][:COUNT]
    heldout = next(number for number in numbers if hippocampus.is_heldout(number))

    def write(folder):
        draw = np.random.default_rng(0)
        scans = {f"image_{n}": draw.integers(0, 99, (32, 48, 32)) for n in (*train, heldout)}
        masks = {f"mask_{n}": draw.integers(0, 3, (32, 48, 32)) for n in (*train, heldout)}
        np.savez(folder / "h.npz", **{k: v.astype(np.uint8) for k, v in (scans | masks).items()})

    place = once(home / "scans", write) / "h.npz"
    before = os.environ.get(hippocampus.ENVIRONMENT)
    os.environ[hippocampus.ENVIRONMENT] = str(place)
    try:
        return opened_set(home, "hippocampus", (4, 6, 4, 1), classes=1, seen_classes=3,
                          in_memory=in_memory)  # fmt: skip
    finally:
        del os.environ[hippocampus.ENVIRONMENT]
        if before is not None:
            os.environ[hippocampus.ENVIRONMENT] = before


SINGLE: dict[str, Callable] = {
    "array": lambda _: array_source(),
    "mapped": mapped,
    "synthetic": lambda _: sources.synthetic((4, 6, 3), CLASSES, "heldout"),
    "tfds": tfds_source,
    "image_folder": image_folder,
    "video_folder": video_folder,
    "volumes": volumes,
    "volumes_in_memory": lambda home: volumes(home, in_memory=True),
    "latents": latent_set,
    "captioned_latents": captioned_latents,
    "captioned": captioned,
}
BUCKETS: dict[str, Callable] = {
    "buckets": lambda home: [array_source(32, shape) for shape in SHAPES],
    "buckets_of_a_folder": lambda home: [
        image_folder(home, tuple(SHAPES)[:2], shape) for shape in tuple(SHAPES)[:2]
    ],
}
KINDS = (*SINGLE, *BUCKETS)


@functools.cache
def source(kind, home):
    """Opened once a process, as by a run."""
    return (SINGLE | BUCKETS)[kind](home)


def opened(kind, home, *, sharding=None, part=None, threads=1):
    """(loader, records an epoch). `part`: (number of a process, processes), which has their rows of
    each batch; by default those of its devices, or all."""

    def loader(one, size=BATCH):
        rows = None if part is None else np.split(np.arange(size), part[1])[part[0]]
        drawn = one.drawn(SEED) if isinstance(one, latents.LatentSource) else None
        return Loader(one, batch_size=size, seed=SEED, flip=True, threads=threads,
                      sharding=sharding, rows=rows, read=drawn)  # fmt: skip

    if kind in BUCKETS:
        found = source(kind, home)
        buckets = [loader(one, SHAPES[one.shape]) for one in found]
        whole = BucketLoader(buckets, seed=SEED, threads=threads, sharding=sharding)
        return whole, sum(map(len, found))
    found = source(kind, home)
    return loader(found), len(found)


def steps_of(loader, records):
    return next(s for s in itertools.count() if loader.position_after(0, s) >= records)


def digests(batch):
    """{row: {field: digest}} of the rows of a batch that this process has."""
    found: dict[int, dict[str, str]] = {}
    for name, value in batch.items():
        for shard in value.addressable_shards:
            for row, content in zip(range(len(value))[shard.index[0]], np.asarray(shard.data),
                                    strict=True):  # fmt: skip
                digest = hashlib.sha256(content.tobytes()).hexdigest()
                assert found.setdefault(row, {}).setdefault(name, digest) == digest
    return found


def read(home, kind, mesh, more=2):
    """`digests` of the batches of an epoch, and of some of the next."""
    loader, records = opened(kind, home, sharding=batch_sharding(mesh), threads=2)
    count = steps_of(loader, records) + more
    return [digests(batch) for batch in itertools.islice(loader.iterate(0), count)]


def main(home, port, process, processes, out):
    distributed.start(f"127.0.0.1:{port}", int(processes), int(process))
    assert jax.device_count() == 8 and jax.process_count() == int(processes)
    home = pathlib.Path(home)
    with distributed.writer_first("sources") as told, listings.remembered(told):
        for kind in KINDS:
            source(kind, home)
    found = {kind: [read(home, kind, make_mesh(sizes)) for sizes in SPLIT] for kind in KINDS}
    pathlib.Path(out).write_text(json.dumps(found | {"told": told}))
    distributed.leave(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
