"""Rows of the table of faults in what a run is given: checkpoints, data, and what it resumes."""

import pathlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from benchmarks.fault_processes import STEPS, Ended, finished, ran, trained

CLASSES = ("a", "b", "c")
PICTURES = 16  # of each class

Run = Callable[[pathlib.Path], Ended]


def small(*arguments: str) -> Run:
    """The small run with these."""
    return lambda scratch: trained(scratch, *arguments)


# Checkpoints.


def damaged(*which: int, entry: str = "train") -> Run:
    """The run goes on from checkpoints that have a flipped bit."""

    def run(scratch: pathlib.Path) -> Ended:
        from nrdm_jax.training import drill

        workdir = finished(scratch)
        for step in which:
            # Of those that are scored, only the averages are read.
            part = str(step) if entry == "train" else f"{step}/ema"
            drill.flip(workdir / "checkpoints" / part)
        if entry != "train":
            return ran(scratch, entry, f"--workdir={workdir}")
        return trained(scratch)

    return run


def emptied(scratch: pathlib.Path) -> Ended:
    """The newest checkpoint has lost its largest file."""
    newest = finished(scratch) / "checkpoints" / str(STEPS)
    files = [path for path in newest.rglob("*") if path.is_file()]
    max(files, key=lambda path: path.stat().st_size).unlink()
    return trained(scratch)


CHECKPOINT = [
    ("a flipped bit in the newest", 0, "checkpoint 12 is damaged, set aside in ", damaged(12)),
    ("a file of the newest is gone", 0, "checkpoint 12 is damaged, set aside in ", emptied),
    ("a flipped bit in each", 65, " is whole:", damaged(4, 8, 12)),
    ("a flipped bit in one that is scored", 65, "the newest whole one is step 8",
     damaged(12, entry="evaluate")),
]  # fmt: skip


# Data.


def pictures(place: pathlib.Path, seed: int = 0) -> pathlib.Path:
    """A folder of them, by class."""
    draw = np.random.default_rng(seed)
    for name in CLASSES:
        (place / name).mkdir(parents=True, exist_ok=True)
        for i in range(PICTURES):
            picture = Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8))
            picture.save(place / name / f"{i}.png")
    return place


def of_folder(folder: pathlib.Path) -> list[str]:
    return [
        f"--config.data.name=image_folder:{folder}",
        f"--config.data.num_classes={len(CLASSES)}",
    ]


def with_a_corrupt_picture(policy: str) -> Run:
    def run(scratch: pathlib.Path) -> Ended:
        folder = pictures(scratch / "pictures")
        picture = folder / "b" / "3.png"
        picture.write_bytes(picture.read_bytes()[:100])
        return trained(scratch, *of_folder(folder), f"--config.data.corrupt={policy}")

    return run


def without_pictures(scratch: pathlib.Path) -> Ended:
    (scratch / "pictures").mkdir()
    return trained(scratch, *of_folder(scratch / "pictures"))


def with_a_class_too_few(scratch: pathlib.Path) -> Ended:
    """A prepared set whose labels are those of more classes than it says it has."""
    from nrdm_jax.data.builders import table

    folder, data = pictures(scratch / "pictures"), scratch / "data"
    builder = table.prepared(f"image_folder:{folder}", (32, 32, 3), str(data))
    home = pathlib.Path(builder.data_dir)
    names = home / "label.labels.txt"
    names.write_text("\n".join(CLASSES[:-1]) + "\n")
    features = home / "features.json"
    features.write_text(features.read_text().replace('"numClasses": "3"', '"numClasses": "2"'))
    name = "/".join(home.relative_to(data).parts[:-1])
    return trained(
        scratch, f"--config.data.name=tfds:{name}", f"--config.data.num_classes={len(CLASSES) - 1}"
    )


def with_other_data(scratch: pathlib.Path) -> Ended:
    """The same command, when the pictures are others."""
    given = of_folder(pictures(scratch / "pictures"))
    trained(scratch, *given)
    pictures(scratch / "pictures", seed=1)
    return trained(scratch, *given)


DATA = [
    ("a corrupt record, with data.corrupt=skip", 0, "1 of 48 items of ",
     with_a_corrupt_picture("skip")),
    ("a corrupt record, with data.corrupt=fail", 65, "data.corrupt=skip leaves such items out",
     with_a_corrupt_picture("fail")),
    ("an empty data set", 65, " holds 0 files of ", without_pictures),
    ("fewer records than a batch", 65, "512 records are fewer than train.batch_size=1024",
     small("--config.train.batch_size=1024")),
    ("a label out of range", 65, " has label 2, outside 0..1", with_a_class_too_few),
    ("a set that is not prepared", 65, "is not prepared in ",
     small("--config.data.name=tfds:nothing")),
]  # fmt: skip


# What is resumed.


def resumed(*arguments: str) -> Run:
    def run(scratch: pathlib.Path) -> Ended:
        finished(scratch)
        return trained(scratch, *arguments)

    return run


ALLOWED = "--allow_config_change"
LONGER, SMALLER = "--config.train.steps=16", "--config.train.batch_size=8"

RESUME = [
    ("other data", 65, "the checkpoint was trained on data ", with_other_data),
    ("another config", 2, "train.steps: 12 -> 16", resumed(LONGER)),
    ("another config, with --allow_config_change", 0, "restored step 12, 192 records seen",
     resumed(LONGER, ALLOWED)),
    ("another number of classes", 2, "data.num_classes: stored 10, wanted 7",
     resumed("--config.data.num_classes=7", ALLOWED)),
    ("another width", 2, ": stored float32[", resumed("--config.model.width=32", ALLOWED)),
    ("another batch size", 2, "train.batch_size: 16 -> 8", resumed(LONGER, SMALLER)),
    ("another batch size, with --allow_config_change", 0,
     "batch size 16 -> 8: the data go on from record 192", resumed(LONGER, SMALLER, ALLOWED)),
]  # fmt: skip
