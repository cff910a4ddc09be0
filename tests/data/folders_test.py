import json
import os

import pytest

from nrdm_jax.data import folders
from nrdm_jax.data.errors import DataError


def make(root, *keys, text="x"):
    for key in keys:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_text(text)


def listing(root, suffixes=(".png",)):
    return folders.list_folder(root, suffixes)


def keys(found):
    return {split: [file.key for file in files] for split, files in found.splits.items()}


def labels(found):
    return {file.key: file.label for files in found.splits.values() for file in files}


def captions(found):
    return {file.key: file.caption for files in found.splits.values() for file in files}


@pytest.mark.parametrize("folder", ["test", "val", "heldout"])
def test_folders_are_splits_and_classes(tmp_path, folder):
    make(tmp_path, "train/cat/1.png", "train/dog/deep/1.PNG", f"{folder}/cat/2.png", "loose.png")
    found = listing(tmp_path)
    assert keys(found) == {
        "train": ["train/cat/1.png", "train/dog/deep/1.PNG"],
        "heldout": [f"{folder}/cat/2.png"],
    }
    assert found.classes == ("cat", "dog") and not found.captioned


def test_validation_is_preferred_to_the_test_set(tmp_path):
    make(tmp_path, "train/1.png", "val/2.png", "test/3.png")
    assert keys(listing(tmp_path))["heldout"] == ["val/2.png"]


def test_a_twentieth_is_held_out_whatever_else_there_is(tmp_path):
    make(tmp_path, *(f"cat/{i}.png" for i in range(600)))
    before = listing(tmp_path)
    share = len(before.splits["heldout"]) / 600
    assert 0.03 < share < 0.07
    make(tmp_path, *(f"dog/{i}.png" for i in range(300)))
    after = listing(tmp_path)
    assert set(keys(before)["heldout"]) == {k for k in keys(after)["heldout"] if "cat" in k}
    assert not set(keys(after)["heldout"]) & set(keys(after)["train"])
    assert sum(map(len, keys(after).values())) == 900


def test_of_few_files_one_is_held_out(tmp_path):
    make(tmp_path, "1.png", "2.png")
    assert {split: len(part) for split, part in keys(listing(tmp_path)).items()} == {
        "train": 1, "heldout": 1,
    }  # fmt: skip
    assert listing(tmp_path).classes == ("all",)


def test_a_lone_train_folder_is_no_class(tmp_path):
    make(tmp_path, "train/cat/1.png", "train/dog/1.png", "train/dog/2.png")
    assert listing(tmp_path).classes == ("cat", "dog")


def test_hidden_files_are_none_and_links_are_followed_once(tmp_path):
    root = tmp_path / "root"
    make(root, "a/1.png", "a/2.png", "a/._1.png", ".git/1.png", "__MACOSX/1.png", "a/notes.md")
    make(root, ".store/3.png")
    os.symlink(root / ".store", root / "b")
    os.symlink(root, root / "a" / "again")
    assert set(labels(listing(root))) == {"a/1.png", "a/2.png", "b/3.png"}


@pytest.mark.parametrize("target", ["elsewhere", "elsewhere/3.png", "absent"])
def test_links_out_of_the_folder_are_refused_by_name(tmp_path, target):
    root = tmp_path / "root"
    make(root, "a/1.png", "a/2.png")
    make(tmp_path, "elsewhere/3.png")
    os.symlink(tmp_path / target, root / "a" / "b.png")
    with pytest.raises(DataError, match=r"a/b.png is a link out of .*root, to "):
        listing(root)


def test_links_of_a_hugging_face_cache_lead_into_its_blobs_only(tmp_path):
    root, blobs = tmp_path / "datasets--a--b" / "snapshots" / "0123", tmp_path / "datasets--a--b"
    make(blobs, "blobs/1", "blobs/2", "refs/main")
    (root / "cat").mkdir(parents=True)
    (blobs / "blobs" / "3").write_text('{"file_name": "1.png", "text": "a cat"}\n')
    for name, blob in (("1.png", "1"), ("2.png", "2"), ("metadata.jsonl", "3")):
        os.symlink(f"../../../blobs/{blob}", root / "cat" / name)
    found = listing(root)
    assert captions(found) == {"cat/1.png": "a cat", "cat/2.png": None}
    os.symlink("../../../refs/main", root / "cat" / "4.png")
    with pytest.raises(DataError, match=r"cat/4.png is a link out of "):
        listing(root)


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path):
    make(tmp_path, "1.png", "2.png")
    os.mkfifo(tmp_path / "3.png")
    with pytest.raises(DataError, match=r"3.png is no regular file"):
        listing(tmp_path)


@pytest.mark.parametrize("table", folders.TABLES)
def test_captions_come_from_tables_and_from_beside(tmp_path, table):
    make(tmp_path, "train/1.png", "train/2.png", "train/日本.png", "test/1.png")
    rows = [{"file_name": "1.png", "text": " a cat "}, {"file_name": "日本.png", "text": "Größe"}]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n"
    make(tmp_path, f"train/{table}", text=text)
    make(tmp_path, "test/1.txt", text="\ufeffa dog\n")
    found = listing(tmp_path)
    assert found.captioned
    assert captions(found) == {
        "train/1.png": "a cat", "train/2.png": None, "train/日本.png": "Größe",
        "test/1.png": "a dog",
    }  # fmt: skip


def test_separators_within_a_caption_are_no_ends_of_lines(tmp_path):
    make(tmp_path, "1.png", "2.png")
    words = {f"{i}.png": f"a{mark}cat" for i, mark in enumerate("\u2028\u2029", 1)}
    words["3.png"] = "a\x85cat"
    rows = [json.dumps({"file_name": k, "text": v}, ensure_ascii=False) for k, v in words.items()]
    (tmp_path / "captions.jsonl").write_bytes("\r\n".join(rows).encode())
    assert captions(listing(tmp_path)) == words


def test_what_has_a_caption_and_is_not_there_is_found_when_it_is_read(tmp_path):
    make(tmp_path, "1.png", "2.png")
    row = {"file_name": "3.png", "text": "a cat"}
    make(tmp_path, "captions.jsonl", text=json.dumps(row))
    assert captions(listing(tmp_path))["3.png"] == "a cat"


@pytest.mark.parametrize(
    "line", ["{", '{"file_name": "1.png"}', "3", '{"file_name": "/etc/x.png", "text": "a"}']
)
def test_a_damaged_table_names_its_line(tmp_path, line):
    make(tmp_path, "1.png", "2.png")
    make(tmp_path, "captions.jsonl", text='{"file_name": "1.png", "text": "a"}\n' + line)
    with pytest.raises(DataError, match=r"captions.jsonl, line 2"):
        listing(tmp_path)


def test_folders_that_cannot_be_used_say_why(tmp_path):
    with pytest.raises(DataError, match="none is no directory"):
        listing(tmp_path / "none")
    make(tmp_path, "1.jpg", "2.jpg")
    with pytest.raises(DataError, match=r"holds 0 files of .png"):
        listing(tmp_path)
    make(tmp_path, "1.png", "cat/2.png")
    with pytest.raises(DataError, match=r"1.png is in no sub-folder.*move it"):
        listing(tmp_path)
    with open(os.fsencode(tmp_path) + b"/\xff.png", "w"):
        pass
    with pytest.raises(DataError, match="is no UTF-8; rename the file"):
        listing(tmp_path)


def test_the_stamp_is_of_what_is_read_of_the_folder(tmp_path):
    make(tmp_path, "1.png", "2.png", "1.txt")
    first = listing(tmp_path).stamp
    make(tmp_path, "README", "notes/about.txt", ".hidden.png")
    assert listing(tmp_path).stamp == first
    changes = [
        lambda: make(tmp_path, "1.png", text="longer"),
        lambda: make(tmp_path, "2.txt"),
        lambda: os.utime(tmp_path / "2.png", (1, 1)),
        lambda: os.rename(tmp_path / "1.png", tmp_path / "3.png"),
        lambda: os.symlink(tmp_path / "nothing", tmp_path / "4.png"),
    ]
    seen = {first}
    for change in changes:
        change()
        seen.add(listing(tmp_path).stamp)
    assert len(seen) == len(changes) + 1
