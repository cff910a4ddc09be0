"""What processes read of each kind of source: rows of the same batches, each record once."""

import itertools
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import source_kinds
from source_kinds import KINDS, MESHES, SPLIT, opened, steps_of

from benchmarks import jobs
from nrdm_jax.sharding.mesh import batch_sharding, make_mesh

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where sources keep what they are made of, and what was prepared."""
    return tmp_path_factory.mktemp("sources")


def batches(loader, count, records_seen=0):
    """With the threads that it has, as numpy."""
    taken = itertools.islice(loader.iterate(records_seen), count)
    return [{name: np.asarray(value) for name, value in batch.items()} for batch in taken]


def assert_equal(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def content(batch):
    """Of each example, with its flip undone: the lesser of it and its mirror image. Of its first
    channel, to which latents have no noise added: with that no two would be the same."""
    pairs = ((x.tobytes(), x[..., ::-1, :].tobytes()) for x in batch["x"][..., :1])
    return [(str(batch["x"].shape[1:]), min(pair)) for pair in pairs]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_read_disjoint_rows_whose_union_is_each_record_once(kind, home):
    whole, records = opened(kind, home)
    steps = steps_of(whole, records)
    assert whole.position_after(0, steps) == records  # here batches do not span an epoch's end
    parts = [batches(opened(kind, home, part=(i, 2))[0], steps) for i in range(2)]
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
def test_neither_mesh_nor_processes_nor_threads_change_a_global_batch(kind, home):
    plain, records = opened(kind, home)
    count = steps_of(plain, records) + 2  # over the end of an epoch
    expected = batches(plain, count)
    for sizes in MESHES:
        mesh = make_mesh(sizes)
        other, _ = opened(kind, home, sharding=batch_sharding(mesh), threads=3)
        assert_equal(batches(other, count), expected)
    four = [batches(opened(kind, home, part=(i, 4), threads=2)[0], count) for i in range(4)]
    joined = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*four, strict=True)
    ]
    assert_equal(joined, expected)


# What a source gives is a function of the place in the data, as the tests above show of all: these
# are the kinds whose loaders find that place in different ways.
@pytest.mark.parametrize("kind", ["array", "latents", "buckets"])
def test_going_on_is_going_on_from_where_it_was(kind, home):
    loader, _ = opened(kind, home)
    expected = batches(loader, 9)
    for step in (1, 4, 7):
        seen = loader.position_after(0, step)
        assert seen == sum(len(batch["label"]) for batch in expected[:step])
        assert_equal(batches(loader, 9 - step, seen), expected[step:])
        assert loader.position_after(seen, 2) == loader.position_after(0, step + 2)


def test_what_is_given_with_a_record_comes_with_it(home):
    """Not only the same everywhere, but there."""
    fields = {kind: set(batches(opened(kind, home)[0], 1)[0]) - {"x", "label"} for kind in KINDS}
    assert fields["array"] == {"text"}
    assert fields["volumes"] == fields["volumes_in_memory"] == {"segmentation"}
    assert fields["latents"] == {"text"} and fields["captioned"] == {"text", "tokens"}
    assert fields["captioned_latents"] == {"text", "text_mask", "text_pooled"}
    # Another epoch draws other latents of the same record.
    loader, records = opened("latents", home)
    taken = batches(loader, 2 * steps_of(loader, records))
    drawn = {x.tobytes() for batch in taken for x in batch["x"]}
    assert len(drawn) == 2 * len({item for batch in taken for item in content(batch)})


def started(home, out, processes):
    """Processes that are one job of 8 devices, and write into `out` what each reads."""
    port = jobs.free_port()
    devices = f"--xla_force_host_platform_device_count={8 // processes}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": devices}
    return [
        subprocess.Popen(
            [sys.executable, source_kinds.__file__, home, str(port), str(i), str(processes),
             out / f"{i}.json"],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(processes)
    ]  # fmt: skip


def test_two_processes_of_one_job_hold_rows_of_the_batches_of_one(home, tmp_path):
    # Before they start: the sets are prepared here.
    wanted = {kind: source_kinds.read(home, kind, make_mesh(MESHES[0])) for kind in KINDS}
    processes = started(home, tmp_path, 2)
    told = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    found = [json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2)]
    # Folders are listed by the first, and the other is told of them: pictures, two buckets, clips.
    assert found[0]["told"] == found[1]["told"] and len(found[0]["told"]) == 4
    for kind, of_kind in wanted.items():
        for i, sizes in enumerate(SPLIT):
            shared = sizes["data"] == 1  # each process has a part of every example
            for whole, *parts in zip(of_kind, *(f[kind][i] for f in found), strict=True):
                rows = [{int(row): fields for row, fields in part.items()} for part in parts]
                assert rows[0] | rows[1] == whole
                assert rows[1] | rows[0] == whole
                assert bool(set(rows[0]) & set(rows[1])) == shared
                assert min(map(len, rows)) == (len(whole) if shared else len(whole) // 2)


def test_a_batch_is_on_its_devices_as_the_mesh_divides_it(home):
    mesh = make_mesh({"data": 8})
    loader, _ = opened("buckets", home, sharding=batch_sharding(mesh))
    for batch in itertools.islice(loader.iterate(0), 4):
        assert all(isinstance(value, jax.Array) for value in batch.values())
        assert batch["x"].sharding == batch_sharding(mesh)
        assert batch["x"].addressable_shards[3].data.shape[0] == batch["x"].shape[0] // 8
