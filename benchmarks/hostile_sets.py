"""Hostile sets that seem to be prepared: their files name other files and classes, say other
counts, and hold something else."""

import atexit
import functools
import io
import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from unittest import mock

from benchmarks import valid_folders
from benchmarks.fault_rows import Answer, Row, entry, process
from benchmarks.file_formats import TRAIN_SHARD
from benchmarks.hostile_pictures import eps
from benchmarks.hostile_reading import (
    BAD_DATA,
    CONFIG,
    EXECUTED,
    Change,
    edited,
    out_of,
    row,
)


@functools.cache
def _prepared() -> pathlib.Path:
    """A set that is as it should be, once a process."""
    home = pathlib.Path(tempfile.mkdtemp(prefix="prepared"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    valid_folders.prepared_set(home / "any")
    shutil.rmtree(home / "pictures")
    shutil.rmtree(home / "sets")
    return home


def prepared(change: Change) -> Callable[[pathlib.Path], pathlib.Path]:
    """-> a folder with the set tfds:hostile, after that change."""

    def make(inside: pathlib.Path) -> pathlib.Path:
        home = inside / "hostile" / "1.0.0"
        shutil.copytree(_prepared(), home)
        change(home)
        return inside

    return make


def show(inside: pathlib.Path) -> Answer:
    return entry("data_sets", "show", "tfds:hostile", f"--dir={inside}", f"--out={out_of(inside)}")


def show_within(inside: pathlib.Path) -> Answer:
    """Where modules of that folder can be imported."""
    with mock.patch.object(sys, "path", [str(inside), *sys.path]):
        return show(inside)


def verify(inside: pathlib.Path) -> Answer:
    return entry("data_sets", "verify", "tfds:hostile", f"--dir={inside}")


def train(inside: pathlib.Path) -> Answer:
    """nrdm train on the set."""
    fields = {
        "data.name": "tfds:hostile",
        "data.dir": str(inside),
        "data.shape": "(8,8,3)",
        "data.num_classes": "2",
        "model.depth": "1",
        "train.batch_size": "8",
    }
    flags = [f"--config.{field}={value}" for field, value in fields.items()]
    return entry("train", CONFIG, f"--workdir={out_of(inside)}", *flags)


def _split(values: dict, name: str = "train") -> dict:
    return next(split for split in values["splits"] if split["name"] == name)


def _foreign_class(home: pathlib.Path) -> None:
    """features.json names a class of a module that leaves a trace when it is imported."""
    module = home.parents[1] / "hostile_features.py"
    module.write_text(f"open({str(home.parents[2] / EXECUTED)!r}, 'w').close()\n")
    text = (home / "features.json").read_text()
    known = "tensorflow_datasets.core.features.image_feature.Image"
    assert known in text
    (home / "features.json").write_text(text.replace(known, "hostile_features.Image"))


def _program(home: pathlib.Path) -> None:
    """A picture that Pillow would give to Ghostscript."""
    from array_record.python.array_record_module import ArrayRecordWriter

    from nrdm_jax.data.prepared import open_directory

    features = open_directory(home).info.features
    (count,) = _split(json.loads((home / "dataset_info.json").read_text()))["shardLengths"]
    picture = eps(f"touch {home.parents[2] / EXECUTED}")
    example = {"image": io.BytesIO(picture), "label": 0, "file": "a", "caption": "a"}
    writer = ArrayRecordWriter(str(home / TRAIN_SHARD), "group_size:1")
    for _ in range(int(count)):
        writer.write(features.serialize_example(features.encode_example(example)))
    writer.close()


def _shard(change: Callable[[bytearray], object]) -> Change:
    def changed(home: pathlib.Path) -> None:
        content = bytearray((home / TRAIN_SHARD).read_bytes())
        change(content)
        (home / TRAIN_SHARD).write_bytes(content)

    return changed


def _flip(content: bytearray) -> None:
    at = content.index(b"IHDR") if b"IHDR" in content else 200
    content[at] ^= 0x10


def _cut(content: bytearray) -> None:
    del content[len(content) // 2 :]


def _zero(content: bytearray) -> None:
    content[:] = bytes(len(content))


def _linked(home: pathlib.Path) -> None:
    outside = home.parents[2] / "outside"
    os.rename(home / TRAIN_SHARD, outside)
    (home / TRAIN_SHARD).symlink_to(outside)


def _replaced(name: str, put: Callable[[pathlib.Path], object]) -> Change:
    def changed(home: pathlib.Path) -> None:
        (home / name).unlink(missing_ok=True)
        put(home / name)

    return changed


def _zeros(path: pathlib.Path) -> None:
    path.symlink_to("/dev/zero")


def _huge(path: pathlib.Path) -> None:
    with open(path, "wb") as file:
        file.truncate(2**27 + 1)


def _classes(count: object) -> Change:
    """Without a file of their names."""

    def changed(home: pathlib.Path) -> None:
        text = (home / "features.json").read_text()
        assert '"numClasses": "2"' in text
        said = f'"numClasses": {json.dumps(count)}'
        (home / "features.json").write_text(text.replace('"numClasses": "2"', said))
        (home / "label.labels.txt").unlink()

    return changed


def rows() -> Iterator[Row]:
    info, features = "dataset_info.json", "features.json"

    def lengths(*counts: int) -> Change:
        return edited(info, lambda v: _split(v).update(shardLengths=list(map(str, counts))))

    def template(text: str) -> Change:
        return edited(info, lambda v: _split(v).update(filepathTemplate=text))

    elsewhere = "../../x/{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    for name, change, says in (
        ("with a picture that is a program", _program, "is damaged: cannot identify image file"),
        ("of 10^12 records", lengths(10**12), "dataset_info.json says 1,000,000,000,000"),
        ("of -1 records", lengths(-1), "dataset_info.json says -1"),
        ("of 10^4 shards", lengths(*[1] * 10**4), "train"),
        ("whose shards are in ../../x", template(elsewhere), "has the names of files '../../x/"),
        ("whose shards have endless names", template("{SPLIT:>999999999999}"), "has the names of"),
        ("whose name is ../x", edited(info, lambda v: v.update(name="../x")), "../x"),
        ("of features nested without end",
         lambda home: (home / features).write_text('{"a":' * 10**5), "is nested too deeply"),
        ("without features", lambda home: (home / features).unlink(), "is not prepared"),
        ("of a list of features", lambda home: (home / features).write_text("[]"), "not an object"),
        ("with a shard that was changed", _shard(_flip), "train: record"),
        ("with a shard that is cut", _shard(_cut), "train"),
        ("with a shard of zeros", _shard(_zero), "train"),
        ("with a shard outside", _linked, "is a link out of"),
        ("of 10^12 classes", _classes("1000000000000"), "has 1000000000000 classes, more than"),
        ("of 1e12 classes", _classes(1e12), "has 1000000000000.0 classes, more than"),
        ("whose dataset_info.json is a pipe", _replaced(info, os.mkfifo), "is no regular file"),
        ("whose dataset_info.json never ends", _replaced(info, _zeros), "is a link out of"),
        ("whose names of classes are a pipe", _replaced("label.labels.txt", os.mkfifo),
         "label.labels.txt is no regular file"),
        ("whose names of classes have 128 MiB", _replaced("label.labels.txt", _huge),
         "more than 134,217,728"),
        ("with a shard that is a pipe", _replaced(TRAIN_SHARD, os.mkfifo), "is no regular file"),
        ("whose manifest is a list", lambda home: (home / "manifest.json").write_text("[]"),
         "manifest.json is damaged"),
    ):  # fmt: skip
        yield row(f"prepared set {name}", BAD_DATA, says, prepared(change), show)
    yield row("prepared set whose features are of another module", BAD_DATA,
              "names the class hostile_features.Image, which is none of", prepared(_foreign_class),
              show_within)  # fmt: skip
    digest = {"bytes": 1, "sha256": "0"}
    for name, text, says in (
        ("../../x", "../../x", "points out of the folder"),
        ("/etc/passwd", "/etc/passwd", "points out of the folder"),
        ("a file that is not there", "x", "x is not there"),
    ):
        change = edited("manifest.json", lambda v, text=text: v["files"].update({text: digest}))
        yield row(f"manifest of {name}", BAD_DATA, says, prepared(change), verify)
    for name, put, says in (
        ("a pipe", os.mkfifo, "x is no regular file"),
        ("a link to /dev/zero", _zeros, "x is a link out of"),
    ):
        listed = edited("manifest.json", lambda v: v["files"].update({"x": digest}))

        def change(home: pathlib.Path, put=put, listed=listed) -> None:
            listed(home)
            put(home / "x")

        yield row(f"manifest of {name}", BAD_DATA, says, prepared(change), verify)
    yield row("training on a set of 10^12 records", BAD_DATA, "dataset_info.json says 1,000,000",
              prepared(lengths(10**12)), train)  # fmt: skip

    def shown(inside: pathlib.Path) -> Answer:
        return process("nrdm_jax.cli", "data", "show", "tfds:hostile", f"--dir={inside}",
                       f"--out={out_of(inside)}")  # fmt: skip

    yield row("prepared set with a shard that is cut, in a process of its own", BAD_DATA, "train",
              prepared(_shard(_cut)), shown)  # fmt: skip
