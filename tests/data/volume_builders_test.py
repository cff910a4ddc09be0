"""Sets of volumes and shapes, from archives like the real ones, and from those where they are."""

import os
import pathlib
import struct
import zipfile

import numpy as np
import pytest

from nrdm_jax.data import sources
from nrdm_jax.data.builders import hippocampus, modelnet, sweethome3d, table
from nrdm_jax.data.errors import DataError

SCANS = pathlib.Path(os.environ.get(hippocampus.ENVIRONMENT, hippocampus.BESIDE))
SHAPES = pathlib.Path(os.environ.get(modelnet.ENVIRONMENT, modelnet.BESIDE))


def opened(name, split, data_dir, shape, num_classes, seen_classes=0):
    return sources.open_source(
        name, split, shape=shape, num_classes=num_classes, data_dir=str(data_dir),
        in_memory_bytes=2**31, seen_classes=seen_classes,
    )  # fmt: skip


def test_hippocampus_from_an_archive(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    arrays = {}
    for i in range(1, 40):
        # [x, y, z]: brighter to the head and the front, the mask in the middle
        x, y, z = np.mgrid[:35, :51, :35]
        scan = 2 * y + 3 * z + draw.integers(0, 3, x.shape)
        mask = np.zeros(scan.shape, np.uint8)
        mask[12:20, 10:25, 15:20], mask[12:20, 25:40, 15:20] = 2, 1
        arrays |= {f"image_{i:03d}": scan.astype(np.uint8), f"mask_{i:03d}": mask}
    np.savez(tmp_path / "h.npz", **arrays)
    monkeypatch.setenv(hippocampus.ENVIRONMENT, str(tmp_path / "h.npz"))
    shape = (32, 48, 32, 1)
    train, heldout = (
        opened("hippocampus", s, tmp_path / "data", shape, 1, seen_classes=3)
        for s in sources.SPLITS
    )
    assert len(train) + len(heldout) == 39 and 2 <= len(heldout) <= 10
    batch = train.gather(np.arange(3))
    x, mask = batch["x"][0, ..., 0].astype(float), batch["segmentation"][0]
    assert x[-4:].mean() > x[:4].mean() + 50 and x[:, -4:].mean() > x[:, :4].mean() + 50
    # Of 1 mm: cut, never interpolated; the anterior part is in front.
    assert (np.bincount(mask.ravel(), minlength=3)[1:] == 8 * 15 * 5).all()
    assert np.argwhere(mask == 1)[:, 1].min() > np.argwhere(mask == 2)[:, 1].max()
    half = opened("hippocampus", "train", tmp_path / "data", (16, 24, 16, 1), 1, seen_classes=3)
    assert set(np.unique(half.gather(np.arange(3))["segmentation"])) == {0, 1, 2}


def test_hippocampus_that_is_absent_or_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv(hippocampus.ENVIRONMENT, str(tmp_path / "none.npz"))
    with pytest.raises(DataError, match=f"set {hippocampus.ENVIRONMENT}"):
        hippocampus.archive_path()
    np.savez(tmp_path / "a.npz", image_001=np.zeros((3, 3, 3)), image_002=np.zeros((3, 3, 3)))
    assert hippocampus.numbers(tmp_path / "a.npz") == ["001", "002"]
    with pytest.raises(DataError, match="a.npz, image_002: cannot be read.*mask_002"):
        hippocampus.read(tmp_path / "a.npz", "002")
    mask = np.full((3, 3, 3), 3)
    np.savez(tmp_path / "b.npz", image_001=np.zeros((3, 3, 3)), mask_001=mask)
    with pytest.raises(DataError, match="image_001: .*classes up to 3"):
        hippocampus.read(tmp_path / "b.npz", "001")
    (tmp_path / "c.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="c.npz cannot be read"):
        hippocampus.numbers(tmp_path / "c.npz")
    with pytest.raises(ValueError, match="data.shape"):
        hippocampus.Hippocampus.config_for((32, 48, 32, 3))


@pytest.mark.skipif(not SCANS.exists(), reason="../shared/data is not here")
def test_hippocampus_is_in_the_frame_that_is_kept():
    """Of real scans: the anterior part lies in front of and below the posterior one, as heads and
    tails of a hippocampus do, and hardly anything drawn in is cut off."""
    kept = drawn = 0
    for number in hippocampus.numbers(SCANS)[::6]:
        scan, mask = hippocampus.read(SCANS, number)
        example = hippocampus.placed(scan, mask, (32, 48, 32), number)
        found = example["segmentation"]
        ahead = np.argwhere(found == 1).mean(0) - np.argwhere(found == 2).mean(0)
        assert ahead[1] > 5 and ahead[0] < 5
        kept, drawn = kept + (found > 0).sum(), drawn + (mask > 0).sum()
        assert example["volume"].min() == 0 and example["volume"].max() == 255
    assert kept > 0.998 * drawn


def modelnet_archive(path, count=40):
    draw = np.random.default_rng(0)
    arrays = {}
    for kind in modelnet.CLASSES:
        cubes = draw.uniform(size=(count, 32, 32, 32)) < 0.05
        cubes[0] = False
        cubes[:, 5, 6, 3:20] = cubes[:, 5, 6, 3:20] | (np.arange(count) > 0)[:, None]
        cubes[-8:] = cubes[-1]
        arrays[kind] = np.packbits(cubes.reshape(count, -1), axis=1)
    np.savez(path, **arrays)
    return arrays


def test_a_damaged_archive_of_modelnet_is_named(tmp_path):
    path = tmp_path / "m.npz"
    np.savez_compressed(path, **modelnet_archive(path, 12))
    content = bytearray(path.read_bytes())
    name, further = struct.unpack_from("<2H", content, 26)
    content[30 + name + further] = 0xFF  # a kind of block that deflate does not have
    path.write_bytes(content)
    with pytest.raises(DataError, match="m.npz cannot be read"):
        list(modelnet.shapes(path))


def test_modelnet_from_an_archive(tmp_path, monkeypatch):
    arrays = modelnet_archive(tmp_path / "m.npz")
    monkeypatch.setenv(modelnet.ENVIRONMENT, str(tmp_path / "m.npz"))
    found = {}
    for size in (32, 16):
        shape = (size, size, size, 1)
        found[size] = [opened("modelnet", s, tmp_path / "data", shape, 2) for s in sources.SPLITS]
    train, heldout = found[32]
    assert len(train) + len(heldout) == 78 and len(heldout) >= 2  # two are empty
    batches = [s.gather(np.arange(len(s))) for s in (train, heldout)]
    # what is there more than once is in one split alone
    distinct = [{x.tobytes() for x in batch["x"]} for batch in batches]
    assert not distinct[0] & distinct[1] and len(distinct[0] | distinct[1]) == 64
    x = batches[0]["x"]
    assert set(np.unique(x)) == {0, 255}
    assert (x[:, 3:20, 6, 5] == 255).all()  # [x, y, z] -> [z, y, x]
    coarse = found[16][0].gather(np.arange(len(train)))["x"]
    means = x.reshape(-1, 16, 2, 16, 2, 16, 2).mean(axis=(2, 4, 6))
    order, other = (np.lexsort(values.reshape(len(x), -1).T) for values in (means, coarse))
    np.testing.assert_allclose(coarse[other][..., 0], means[order], atol=0.5)
    assert arrays["chair"].shape == (40, 4096)


def test_captions_are_the_classes(tmp_path, monkeypatch):
    modelnet_archive(tmp_path / "m.npz", count=12)
    monkeypatch.setenv(modelnet.ENVIRONMENT, str(tmp_path / "m.npz"))
    builder = table.prepared("modelnet", (8, 8, 8, 1), str(tmp_path / "data"))
    records = builder.as_data_source("train")
    said = {(records[i]["label"], records[i]["caption"]) for i in range(len(records))}
    assert said == {(0, b"a chair"), (1, b"a monitor")}


@pytest.mark.parametrize("shape", [(32, 32, 16, 1), (24, 24, 24, 1), (32, 32, 32, 3), (32, 32, 1)])
def test_modelnet_has_cubes_of_a_few_sizes(shape):
    with pytest.raises(ValueError, match="data.shape"):
        modelnet.Modelnet.config_for(shape)


@pytest.mark.skipif(not SHAPES.exists(), reason="../shared/data is not here")
def test_chairs_stand_on_their_legs():
    chairs = [modelnet.pooled(bits, 32)[..., 0] > 0
              for kind, _, bits in modelnet.shapes(SHAPES) if kind == "chair"]  # fmt: skip
    assert len(chairs) == 889
    filled = np.mean([chair.mean(axis=(1, 2)) for chair in chairs], axis=0)  # by height
    assert filled[13:19].max() == filled.max() > 2 * filled[:10].max()  # the seat


CATALOGUE = """# furniture
id=x
name#1=Bedside table
category#1=Bedroom
model#1=/a/table.obj
name#2=Bill 50\\u20ac
category#2=Miscellaneous
model#2=/a/bill.obj
modelRotation#2=1 0 0 0 0 1 0 -1 0
name#3=TV
category#3=Living room
model#3=/a/table.obj
"""
TABLE = (
    "v 0 0 0\nv 4 0 0\nv 4 0 2\nv 0 0 2\nv 2 1 1\nf 1 2 3 4\nf 1 2 5\nf 2 3 5\nf 3 4 5\nf 4 1 5\n"
)


def catalogue(path, text=CATALOGUE, **files):
    files = {"a/table.obj": TABLE, "a/bill.obj": TABLE} | files
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(sweethome3d.PROPERTIES, text.encode("latin-1"))
        for name, content in files.items():
            archive.writestr(name, content)


def test_furniture_by_name_as_it_stands(tmp_path, monkeypatch):
    (tmp_path / "usr").mkdir()
    catalogue(tmp_path / "usr" / "Some.sh3f")
    monkeypatch.setenv(sweethome3d.ENVIRONMENT, str(tmp_path))
    (path,) = sweethome3d.catalogues()
    found = sweethome3d.models(path)
    assert [sweethome3d.caption_of(m["name"]) for _, m in sorted(found.items())] == [
        "bedside table", "bill 50€", "TV"
    ]  # fmt: skip
    # A pyramid on a floor of 4 x 2, 1 high: of 16 voxels, 4 up, 8 to the back, 16 to the right.
    standing = sweethome3d.voxelised(path, found[1], 16)
    areas = standing.sum(axis=(1, 2))
    assert (np.diff(areas[areas > 0]) <= 0).all() and areas.max() >= 16 * 8
    np.testing.assert_allclose(np.ptp(np.argwhere(standing), axis=0) + 1, [4, 8, 16], atol=2)
    # Turned: what was up is to the back of the file's axes.
    turned = sweethome3d.voxelised(path, found[2], 16)
    np.testing.assert_allclose(np.ptp(np.argwhere(turned), axis=0) + 1, [8, 4, 16], atol=2)
    np.testing.assert_array_equal(
        np.sort(turned.sum(axis=(0, 2))), np.sort(standing.sum(axis=(1, 2)))
    )


def test_furniture_is_prepared_and_read(tmp_path, monkeypatch):
    names = [f"Chair {i}" for i in range(40)]
    text = "".join(
        f"name#{i}={name}\ncategory#{i}=Office\nmodel#{i}=/a/table.obj\n"
        for i, name in enumerate(names)
    )
    catalogue(tmp_path / "Some.sh3f", text)
    monkeypatch.setenv(sweethome3d.ENVIRONMENT, str(tmp_path))
    builder = table.prepared("sweethome3d", (8, 8, 8, 1), str(tmp_path / "data"))
    said = {}
    for split in sources.SPLITS:
        records = builder.as_data_source(split)
        said[split] = {records[i]["caption"].decode() for i in range(len(records))}
        assert records[0]["volume"].shape == (8, 8, 8, 1) and records[0]["volume"].max() == 255
        assert records[0]["label"] == sweethome3d.CLASSES.index("Office")
    assert said["train"] | said["heldout"] == {name.lower() for name in names}
    assert not said["train"] & said["heldout"]


def test_furniture_that_is_absent_or_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv(sweethome3d.ENVIRONMENT, str(tmp_path))
    with pytest.raises(DataError, match="apt-get download sweethome3d-furniture && dpkg -x"):
        sweethome3d.catalogues()
    path = tmp_path / "x.sh3f"
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match="x.sh3f cannot be read"):
        sweethome3d.models(path)
    catalogue(path, "name#4=A\ncategory#4=Office\n")
    with pytest.raises(DataError, match="model 4: without model"):
        sweethome3d.models(path)
    catalogue(path, "name#4=A\ncategory#4=Ships\nmodel#4=/a\n")
    with pytest.raises(DataError, match="model 4: Ships"):
        sweethome3d.models(path)
    with pytest.raises(DataError, match="a/none.obj cannot be read"):
        sweethome3d.voxelised(path, {"model": "/a/none.obj"}, 8)
    catalogue(path, **{"a/bad.obj": "v 0 0\n"})
    with pytest.raises(DataError, match="a/bad.obj, line 1"):
        sweethome3d.voxelised(path, {"model": "/a/bad.obj"}, 8)
