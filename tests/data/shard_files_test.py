import dataclasses
import json

import pytest
from array_record.python.array_record_module import ArrayRecordReader

from nrdm_jax.data import shard_files
from nrdm_jax.data.errors import DataError

ITEMS = {
    "train": [(f"a{i}", i) for i in range(23)],
    "heldout": [(f"b{i}", 100 + i) for i in range(5)],
}


class Maker:
    """Two records of each item, after those of which items are corrupt; counts what it is asked."""

    def __init__(self, corrupt=()):
        self.corrupt, self.made = set(corrupt), []

    def __call__(self, content):
        self.made.append(content)
        yield f"{content} one".encode()
        if content in self.corrupt:
            raise DataError(f"{content}: broken")
        yield f"{content} two".encode()


def write(directory, maker, corrupt="skip", items=ITEMS, plan="1", threads=2):
    return shard_files.write(
        directory, items, maker, plan=plan, per_shard=4, corrupt=corrupt, threads=threads
    )


def read(directory, shard):
    return ArrayRecordReader(str(directory / shard.file)).read_all() if shard.records else []


def test_records_are_in_the_order_of_the_items(tmp_path):
    written = write(tmp_path, Maker())
    for split, items in ITEMS.items():
        assert [shard.records for shard in written[split]][:-1] == [8] * ((len(items) - 1) // 4)
        records = [record for shard in written[split] for record in read(tmp_path, shard)]
        assert records == [f"{i} {w}".encode() for _, i in items for w in ("one", "two")]
        assert sum(shard.bytes for shard in written[split]) == sum(map(len, records))


def test_bytes_do_not_depend_on_threads_or_on_what_was_there(tmp_path):
    one, four = (write(tmp_path / str(n), Maker(), threads=n) for n in (1, 4))
    assert one == four
    maker = Maker()
    # Lost, cut short, and without a note, as a kill between two writes would leave them.
    (tmp_path / "1" / "train-00001.array_record").unlink()
    cut = tmp_path / "1" / "train-00003.array_record"
    cut.write_bytes(cut.read_bytes()[:-9])
    (tmp_path / "1" / "heldout-00001.json").unlink()
    (tmp_path / "1" / "train-00002.partial").write_bytes(b"what a killed writer left")
    assert write(tmp_path / "1", maker) == one
    assert sorted(maker.made) == [4, 5, 6, 7, 12, 13, 14, 15, 104]


@pytest.mark.parametrize("changed", ["plan", "items"])
def test_shards_of_another_plan_are_made_anew(tmp_path, changed):
    write(tmp_path, Maker())
    maker = Maker()
    items = ITEMS | {"heldout": ITEMS["heldout"][:4]} if changed == "items" else ITEMS
    write(tmp_path, maker, plan="2" if changed == "plan" else "1", items=items)
    assert len(maker.made) == sum(map(len, items.values()))
    assert len(list(tmp_path.glob("heldout-*.array_record"))) == (1 if changed == "items" else 2)


def test_corrupt_items_are_named_and_tried_again(tmp_path):
    written = write(tmp_path, Maker(corrupt=(5, 102)))
    assert written["train"][1].corrupt == (("a5", "5: broken"),)
    assert written["heldout"][0].corrupt == (("b2", "102: broken"),)
    assert b"5 one" in read(tmp_path, written["train"][1])  # what it gave before stays
    repaired = Maker()
    again = write(tmp_path, repaired)
    assert sorted(repaired.made) == [4, 5, 6, 7, 100, 101, 102, 103]
    assert again == write(tmp_path / "other", Maker())


def test_a_policy_that_allows_none_stops_at_the_first(tmp_path):
    with pytest.raises(DataError, match="5: broken; data.corrupt=skip leaves such items out"):
        write(tmp_path, Maker(corrupt=(5,)), corrupt="fail", threads=1)
    maker = Maker()
    write(tmp_path, maker, corrupt="fail")
    assert 3 not in maker.made and 4 in maker.made  # the shard before was done


@pytest.mark.parametrize(
    ("total", "corrupt", "refused"), [(20, 10, False), (20, 11, True), (2000, 20, False),
                                      (2000, 21, True)]
)  # fmt: skip
def test_a_few_may_be_corrupt_or_one_in_a_hundred(total, corrupt, refused):
    tally = shard_files.Tally(total, "skip", lambda n: None)
    for i in range(corrupt - 1):
        tally.corrupt(f"item {i}")
    if refused:
        with pytest.raises(DataError, match=rf"{corrupt} of {total:,} items.*item 0"):
            tally.corrupt("the last")
    else:
        tally.corrupt("the last")


def test_another_error_stops_every_shard_and_is_not_hidden(tmp_path):
    def broken(content):
        if content == 9:
            raise RuntimeError("a defect")
        yield b"x"

    with pytest.raises(RuntimeError, match="a defect"):
        write(tmp_path, broken)
    assert not (tmp_path / "train-00002.json").exists()


def test_notes_are_the_shards(tmp_path):
    (shard, *_) = write(tmp_path, Maker())["heldout"]
    note = json.loads((tmp_path / "heldout-00000.json").read_text())
    assert note == dataclasses.asdict(shard) | {"corrupt": []}
