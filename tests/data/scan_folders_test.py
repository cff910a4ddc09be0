import errno
import gzip
import pathlib
import shutil
import struct

import numpy as np
import pytest

from nrdm_jax.data import manifest, sources
from nrdm_jax.data.builders import dicom_folder, nifti_folder, scans, table
from nrdm_jax.data.errors import DataError

nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")
NIFTI = pathlib.Path(nibabel.__file__).parent / "tests" / "data"
DICOM = pathlib.Path(pydicom.__file__).parent / "data" / "test_files" / "dicomdirtests"


def opened(name, split, data_dir, shape, num_classes=1, seen_classes=0):
    return sources.open_source(
        name, split, shape=shape, num_classes=num_classes, data_dir=str(data_dir),
        in_memory_bytes=2**31, seen_classes=seen_classes,
    )  # fmt: skip


def found(builder, folder):
    """The scans of a folder; their faults are raised."""
    scans_found = scans.checked(list(builder.find(folder)), builder.NAME)
    for one in scans_found:
        if one.fault:
            raise DataError(one.fault)
    return scans_found


def scan(seed, shape=(10, 12, 8)):
    """[x, y, z]: bright towards the right, the front and the head, and a mask of what is
    brightest; both asymmetric."""
    x, y, z = np.mgrid[: shape[0], : shape[1], : shape[2]]
    values = 3.0 * x + 5.0 * y + 11.0 * z + seed
    return values, (values > np.quantile(values, 0.8)).astype(np.uint8) * 2


def write(path, array, codes="RAS", spacing=(1.0, 1.0, 1.0)):
    """A NIfTI file of the same scan, stored in another orientation."""
    from nibabel import orientations

    path.parent.mkdir(parents=True, exist_ok=True)
    turn = orientations.ornt_transform(
        orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(codes)
    )
    affine = np.diag([*spacing, 1.0]) @ orientations.inv_ornt_aff(turn, array.shape)
    stored = orientations.apply_orientation(array, turn)
    nibabel.save(nibabel.Nifti1Image(stored, affine), path)


def nifti_set(folder, codes=("RAS",), masks="beside"):
    for split, count in (("train", 4), ("heldout", 2)):
        for i in range(count):
            values, mask = scan(i)
            name = folder / split / f"s{i}.nii.gz"
            write(name, values.astype(np.float32), codes[i % len(codes)])
            if masks == "beside":
                write(name.with_name(f"s{i}_seg.nii"), mask, "LAS")
            elif masks == "folder":
                write(folder / "masks" / split / name.name, mask, codes[-1])


@pytest.mark.parametrize("masks", ["beside", "folder"])
def test_nifti_of_any_orientation_is_one_set_with_its_masks(tmp_path, masks):
    folder = tmp_path / "scans"
    nifti_set(folder, ("RAS", "LPS", "SAR", "PIL"), masks)
    shape = (8, 12, 10)
    source = opened(
        f"nifti_folder:{folder}", "train", tmp_path / "data", (*shape, 1), seen_classes=3
    )
    assert len(source) == 4 and source.class_names == ("all",)
    batch = source.gather(np.arange(4))
    values, mask = scan(0)
    expected = values.T
    low, high = np.percentile(expected, (0.5, 99.5))
    shown = np.clip((expected - low) / (high - low), 0, 1) * 255
    for x, segmentation in zip(batch["x"], batch["segmentation"], strict=True):
        np.testing.assert_allclose(x[..., 0], shown, atol=1)
        np.testing.assert_array_equal(segmentation, mask.T)
    assert len(opened(f"nifti_folder:{folder}", "heldout", tmp_path / "data", (*shape, 1))) == 2


@pytest.mark.parametrize("memory", [0, 2**31])
def test_a_class_that_would_not_be_seen_is_refused(tmp_path, memory):
    folder = tmp_path / "scans"
    nifti_set(folder)  # of the classes 0 and 2

    def source(classes):
        return sources.open_source(
            f"nifti_folder:{folder}", "train", shape=(8, 12, 10, 1), num_classes=1,
            data_dir=str(tmp_path / "data"), in_memory_bytes=memory, seen_classes=classes,
        )  # fmt: skip

    says = r"record \d has the class 2 in its segmentation, outside 0..1; set data.seen_classes"
    for _ in range(2):  # before and after the whole set has been decoded for others
        with pytest.raises(DataError, match=says):
            source(2).gather(np.arange(1, 3))
        assert source(3).gather(np.arange(4))["segmentation"].max() == 2


@pytest.mark.parametrize(
    ("images", "labels", "channels"),
    [("images", "labels", [""]), ("imagesTr", "labelsTr", [""]),
     ("imagesTr", "labelsTr", ["_0000", "_0001"])],
)  # fmt: skip
def test_folders_of_images_and_labels_are_scans_and_their_masks(tmp_path, images, labels, channels):
    for i in range(3):
        values, mask = scan(i)
        for channel in channels:
            write(tmp_path / images / f"s_{i:04d}{channel}.nii.gz", values)
        write(tmp_path / labels / f"s_{i:04d}.nii.gz", mask)
    if labels == "labelsTr":
        write(tmp_path / "imagesTs" / "s_0009.nii", values)
    listed = found(nifti_folder.NiftiFolder, tmp_path)
    assert len(listed) == 3 * len(channels)
    assert {one.kind for one in listed} == {"all"} and {one.heldout for one in listed} == {None}
    assert len({one.subject for one in listed}) == 3
    for one in listed:
        assert one.mask.parent.name == labels and one.mask.name[:6] == one.files[0].name[:6]
    if labels == "labelsTr":  # all three splits, now that there are masks
        write(tmp_path / "labelsTs" / "s_0009.nii", mask)
        listed = found(nifti_folder.NiftiFolder, tmp_path)
        assert [one.name for one in listed if one.heldout] == ["s_0009.nii"]


def test_spacing_makes_cubes(tmp_path):
    folder = tmp_path / "scans"
    for i, split in enumerate(("train", "heldout")):
        values = np.zeros((20, 20, 5), np.float32)
        values[5:15, 5:15, 1:4] = 100 + i  # 10 x 10 x 12 mm
        write(folder / split / "a.nii.gz", values, spacing=(1.0, 1.0, 4.0))
    source = opened(f"nifti_folder:{folder}", "train", tmp_path / "data", (20, 20, 20, 1))
    bright = np.argwhere(source.gather(np.arange(1))["x"][0, ..., 0] > 127)
    np.testing.assert_allclose(np.ptp(bright, axis=0) + 1, [12, 10, 10], atol=0.5)


def test_a_changed_folder_is_another_set(tmp_path):
    folder = tmp_path / "scans"
    nifti_set(folder, masks="none")
    before = nifti_folder.NiftiFolder.config_for((8, 8, 8, 1), folder).name
    write(folder / "train" / "s9.nii.gz", scan(3)[0])
    after = nifti_folder.NiftiFolder.config_for((8, 8, 8, 1), folder).name
    assert before != after and before.startswith("8x8x8-")


def test_classes_subjects_and_splits_by_place(tmp_path):
    for path in ("train/sick/sub-01_T1.nii.gz", "val/well/sub-02.nii", ".hidden/x.nii.gz",
                 "train/sick/._x.nii.gz"):  # fmt: skip
        write(tmp_path / path, scan(0)[0])
    listed = found(nifti_folder.NiftiFolder, tmp_path)
    assert [(s.name, s.kind, s.subject, s.heldout) for s in listed] == [
        ("sick/sub-01_T1.nii.gz", "sick", "sub-01", False),
        ("well/sub-02.nii", "well", "sub-02", True),
    ]
    many = [scans.Scan(f"{i}", f"sub-{i // 3}", "all", None, ()) for i in range(120)]
    splits = scans.split(many)
    assert 6 <= len(splits["heldout"]) <= 36 and len(splits["heldout"]) % 3 == 0
    assert not {s.subject for s in splits["train"]} & {s.subject for s in splits["heldout"]}
    assert len(scans.split(many[:6])["heldout"]) == 3  # at least a subject


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["train/a", "train/b/c"], [("a", "all", None), ("b/c", "b", None)]),
        (
            ["train/a", "val/a", "test/a", "test/b", "loose"],
            [("a", "all", False), ("a", "all", True)],
        ),
        (["test/a", "well/b"], [("test/a", "test", None), ("well/b", "well", None)]),
        (["train/x/a", "validation/x/b"], [("x/a", "x", False), ("x/b", "x", True)]),
        (["train", "a"], [("train", "all", None), ("a", "all", None)]),
    ],
)
def test_splits_are_by_the_folders_that_the_whole_set_has(paths, expected):
    assert [found[1:] for found in scans.by_place(dict.fromkeys(paths, 0))] == expected


@pytest.mark.parametrize("folders", [("train",), ("train", "val", "test")])
def test_a_lone_train_folder_and_a_third_split_are_sets(tmp_path, folders):
    for folder in folders:
        for i in range(3):
            write(tmp_path / "scans" / folder / f"s{i}.nii", scan(i)[0])
    builder = table.prepared(
        f"nifti_folder:{tmp_path / 'scans'}", (4, 6, 5, 1), str(tmp_path / "d")
    )
    counts = {split: info.num_examples for split, info in builder.info.splits.items()}
    assert counts == (
        {"train": 2, "heldout": 1} if len(folders) == 1 else {"train": 3, "heldout": 3}
    )


@pytest.mark.parametrize("name", ["anatomical.nii", "resampled_anat_moved.nii", "standard.nii.gz"])
def test_files_of_nibabel_are_read_as_it_reads_them(name):
    size, spacing = nifti_folder.header_of(NIFTI / name)
    volume, affine = nifti_folder.load(NIFTI / name)
    image = nibabel.as_closest_canonical(nibabel.load(NIFTI / name))
    assert volume.shape == size and nibabel.aff2axcodes(affine) == ("R", "A", "S")
    np.testing.assert_allclose(spacing, image.header.get_zooms()[::-1], rtol=1e-5)
    np.testing.assert_allclose(volume, image.get_fdata().T, rtol=1e-5)


def test_damaged_and_unfit_nifti_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"functional.nii is of \(17, 21, 3, 20\)"):
        nifti_folder.header_of(NIFTI / "functional.nii")
    short = tmp_path / "short.nii"
    short.write_bytes((NIFTI / "anatomical.nii").read_bytes()[:5000])
    with pytest.raises(DataError, match="short.nii cannot be read"):
        nifti_folder.load(short)
    (tmp_path / "not.nii.gz").write_bytes(b"no scan")
    with pytest.raises(DataError, match="not.nii.gz cannot be read"):
        nifti_folder.header_of(tmp_path / "not.nii.gz")
    with pytest.raises(DataError, match="no scans"):
        scans.checked([], "nifti_folder")
    with pytest.raises(DataError, match="is no directory"):
        nifti_folder.NiftiFolder.config_for((8, 8, 8, 1), tmp_path / "absent")


def damaged(content):
    """With one byte of what is compressed another one: of those that gzip alone finds by its
    checksum, of those that are no deflate at all, and of a file cut short."""
    yield content[:-6] + bytes([content[-6] ^ 1]) + content[-5:]  # of the checksum
    yield content[:12] + b"\xff" * 8 + content[20:]
    yield content[:-9]
    middle = len(content) // 2
    yield content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


def test_damaged_compressed_files_are_named_and_machines_are_not(tmp_path, monkeypatch):
    file = tmp_path / "a.nii.gz"
    write(file, np.random.default_rng(0).integers(0, 255, (20, 20, 20)).astype(np.uint8))
    whole = file.read_bytes()
    expected = nifti_folder.load(file)[0]
    np.testing.assert_array_equal(expected, np.asarray(nibabel.load(file).dataobj).T)
    for content in damaged(whole):
        file.write_bytes(content)
        with pytest.raises(DataError, match="a.nii.gz cannot be read"):
            nifti_folder.load(file)
        list(nifti_folder.NiftiFolder.find(tmp_path))  # a fault, or only the header is read
    file.write_bytes(whole)

    def fail(path):
        raise OSError(errno.EIO, "disk")

    monkeypatch.setattr(nifti_folder, "BoundedFile", fail)
    with pytest.raises(OSError, match="disk"):
        nifti_folder.load(file)


@pytest.mark.parametrize(("place", "value"), [(70, 9999), (40, -3), (40, 9)])
def test_damaged_headers_are_faults(tmp_path, place, value):
    for name in ("a.nii", "b.nii.gz"):
        write(tmp_path / name, scan(0)[0].astype(np.float32))
        opener = gzip.open if name.endswith("gz") else open
        with opener(tmp_path / name, "rb") as stored:
            content = bytearray(stored.read())
        struct.pack_into("<h", content, place, value)  # the type, or the number of dimensions
        with opener(tmp_path / name, "wb") as stored:
            stored.write(content)
    faults = [one.fault for one in nifti_folder.NiftiFolder.find(tmp_path)]
    assert len(faults) == 2 and all("cannot be read" in fault for fault in faults)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_header_of_more_voxels_than_there_is_memory_is_a_fault(tmp_path, suffix):
    write(tmp_path / "a.nii", scan(0)[0].astype(np.float32))
    content = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<3h", content, 42, *[32767] * 3)
    file = tmp_path / f"b{suffix}"
    file.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    for read in (nifti_folder.header_of, nifti_folder.load):
        with pytest.raises(DataError, match=r"is of \(32767, 32767, 32767\) voxels"):
            read(file)


def test_a_nifti_file_of_the_second_kind(tmp_path):
    values = scan(0)[0].astype(np.float32)
    nibabel.save(nibabel.Nifti2Image(values, np.eye(4)), tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(nifti_folder.load(tmp_path / "a.nii.gz")[0], values.T)


@pytest.mark.parametrize(
    ("change", "says"),
    [(lambda m: m[:-1], "not of the voxels"), (lambda m: m + 0.5, "whole numbers"),
     (lambda m: m - 1.0, "whole numbers")],
)  # fmt: skip
def test_masks_that_are_none_are_refused(tmp_path, change, says):
    values, mask = scan(0)
    write(tmp_path / "a.nii.gz", values)
    write(tmp_path / "a_seg.nii.gz", change(mask.astype(np.float32)))
    (one,) = found(nifti_folder.NiftiFolder, tmp_path)
    with pytest.raises(DataError, match=says):
        nifti_folder.NiftiFolder.read(one)


def test_a_mask_of_another_place_is_refused_and_one_that_lacks_is_named(tmp_path):
    values, mask = scan(0)
    write(tmp_path / "a.nii.gz", values)
    write(tmp_path / "a_seg.nii.gz", mask)
    moved = nibabel.Nifti1Image(mask, np.diag([1.0, 1, 1, 1]) + np.eye(4, k=3) * 2)
    nibabel.save(moved, tmp_path / "a_seg.nii.gz")
    (one,) = found(nifti_folder.NiftiFolder, tmp_path)
    with pytest.raises(DataError, match="not of the voxels"):
        nifti_folder.NiftiFolder.read(one)
    write(tmp_path / "b.nii.gz", values)
    with pytest.raises(DataError, match="b.nii.gz: has no mask, and other scans have"):
        found(nifti_folder.NiftiFolder, tmp_path)


def test_a_damaged_scan_is_left_out_by_name_or_refused(tmp_path):
    folder = tmp_path / "scans"
    nifti_set(folder, masks="none")
    (folder / "train" / "bad.nii.gz").write_bytes(b"no scan")
    short = (NIFTI / "anatomical.nii").read_bytes()[:5000]
    (folder / "train" / "short.nii").write_bytes(short)
    name, shape = f"nifti_folder:{folder}", (8, 12, 10, 1)
    with pytest.raises(DataError, match="bad.nii.gz cannot be read|short.nii cannot be read"):
        table.prepared(name, shape, str(tmp_path / "one"), corrupt="fail")
    builder = table.prepared(name, shape, str(tmp_path / "other"))
    assert builder.info.splits["train"].num_examples == 4
    assert set(manifest.left_out(pathlib.Path(builder.data_dir))) == {
        "train/bad.nii.gz", "train/short.nii"
    }  # fmt: skip


def test_no_split_may_be_empty(tmp_path):
    write(tmp_path / "scans" / "a.nii.gz", scan(0)[0])
    with pytest.raises(DataError, match="folders train and heldout"):
        table.prepared(f"nifti_folder:{tmp_path / 'scans'}", (8, 8, 8, 1), str(tmp_path / "data"))


def test_absent_packages_name_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for builder in (nifti_folder.NiftiFolder, dicom_folder.DicomFolder):
        with pytest.raises(ValueError, match="--extras=medical") as caught:
            list(builder.find(tmp_path))
        assert not isinstance(caught.value, DataError)


def series(folder, array, *, turn=None, names=None, spacing=(2.0, 0.5, 0.7), change=None, **fields):
    """Writes slices of [z, y, x] (up, to the back, to the left: DICOM's axes), or of an orientation
    that `turn` makes of it, under any names; intensities are stored as (value + 1024) / 2."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    uid = fields.pop("uid", generate_uid())
    along_row, down, normal = turn or ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    for k, plane in enumerate(array):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        name = folder / (names[k] if names else f"{k:03d}.dcm")
        part = FileDataset(str(name), {}, file_meta=meta, preamble=b"\0" * 128)
        part.SeriesInstanceUID, part.PatientID = uid, fields.get("patient", "p1")
        part.SOPClassUID, part.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        part.ImageOrientationPatient = [*along_row, *down]
        part.ImagePositionPatient = [float(k * spacing[0] * n) for n in normal]
        part.PixelSpacing = [spacing[1], spacing[2]]  # between rows, between columns
        part.Rows, part.Columns = plane.shape
        part.SamplesPerPixel, part.PhotometricInterpretation = 1, "MONOCHROME2"
        part.BitsAllocated = part.BitsStored = 16
        part.HighBit, part.PixelRepresentation = 15, 0
        part.RescaleSlope, part.RescaleIntercept = 2, -1024
        part.PixelData = ((plane + 1024) // 2).astype("<u2").tobytes()
        if change:
            change(k, part)
        part.save_as(name, enforce_file_format=True)


def stack(shape=(5, 6, 7)):
    """[z, y, x] even numbers, all different along every axis."""
    z, y, x = np.mgrid[: shape[0], : shape[1], : shape[2]]
    return 2 * (100 * z + 10 * y + x)


def test_slices_are_in_order_of_their_places_and_in_hounsfield_units(tmp_path):
    array = stack()
    # sorted by name, these are in another order; two without a suffix, and what is no slice
    series(tmp_path / "s", array, names=["c.dcm", "a.dcm", "1.2.840.10", "b.DCM", "IM0001"])
    (tmp_path / "s" / "README").write_text("no slice" * 50)
    (tmp_path / "s" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (one,) = found(dicom_folder.DicomFolder, tmp_path)
    volume, mask = dicom_folder.DicomFolder.read(one)
    # DICOM's y is to the back and x to the left; ours to the front and to the right
    np.testing.assert_array_equal(volume, array[:, ::-1, ::-1])
    assert mask is None and one.size == array.shape and one.subject == "p1"
    np.testing.assert_allclose(one.spacing, (2.0, 0.5, 0.7))


def test_sagittal_and_backward_series_are_turned(tmp_path):
    array = stack()
    # rows go down to the feet, columns to the back, slices to the left: [x, z, y] of DICOM
    series(tmp_path / "sagittal", array, turn=((0, 1, 0), (0, 0, -1), (1, 0, 0)))
    (one,) = found(dicom_folder.DicomFolder, tmp_path)
    volume = dicom_folder.DicomFolder.read(one)[0]
    # [x left, z down, y back] -> [z up, y front, x right]
    np.testing.assert_array_equal(volume, array.transpose(1, 2, 0)[::-1, ::-1, ::-1])
    np.testing.assert_allclose(one.spacing, (0.5, 0.7, 2.0))


def test_dicom_is_what_nifti_of_the_same_scan_is(tmp_path):
    """Through the whole builder, and classes by folder."""
    array = stack((8, 10, 12))
    for split, patient in (("train", "a"), ("test", "b")):
        for kind in ("thorax", "head"):
            series(tmp_path / "d" / split / kind / "s1", array, spacing=(1.0, 1.0, 1.0),
                   patient=patient)  # fmt: skip
        write(tmp_path / "n" / split / "x.nii.gz", array.T[::-1, ::-1].astype(np.float32))
    shape = (8, 10, 12, 1)
    dicom = opened(f"dicom_folder:{tmp_path / 'd'}", "train", tmp_path / "data", shape, 2)
    nifti = opened(f"nifti_folder:{tmp_path / 'n'}", "train", tmp_path / "data", shape)
    assert dicom.class_names == ("head", "thorax") and len(dicom) == 2
    one, other = dicom.gather(np.arange(1)), nifti.gather(np.arange(1))
    np.testing.assert_array_equal(one["x"], other["x"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda k, p: setattr(p, "SeriesInstanceUID", f"1.2.{k // 3}"), "a folder is one series"),
        (lambda k, p: k == 2 and setattr(p, "PixelSpacing", [1, 1]), "002.dcm has PixelSpacing"),
        (lambda k, p: k == 1 and delattr(p, "ImagePositionPatient"), "without ImagePosition"),
        (lambda k, p: k == 4 and setattr(p, "ImagePositionPatient", [0, 0, 6.0]), "is 0 mm from"),
        (lambda k, p: k == 1 and setattr(p, "ImagePositionPatient", None), "without ImagePosition"),
        (lambda k, p: setattr(p, "PixelSpacing", None), "000.dcm.*: without PixelSpacing"),
        (lambda k, p: setattr(p, "PixelSpacing", [0, 0]), r"PixelSpacing is \[0.*not more than 0"),
        (lambda k, p: setattr(p, "PixelSpacing", [1, 1, 1]), "and not 2 finite numbers"),
        (lambda k, p: setattr(p, "ImagePositionPatient", [0, 0]), "and not 3 finite numbers"),
        (lambda k, p: setattr(p, "ImageOrientationPatient", [1, 0, 0, 1]), "not 6 finite numbers"),
        (lambda k, p: setattr(p, "ImagePositionPatient", [0, 0, float("nan")]), "3 finite"),
        (lambda k, p: setattr(p, "ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "is 0 mm from"),
        (lambda k, p: setattr(p, "Rows", 0), "Rows is 0, and not more than 0"),
        (lambda k, p: k == 4 and setattr(p, "ImagePositionPatient", [0, 0, 12.0]), "none is miss"),
    ],
)
def test_what_is_no_series_is_refused_by_name(tmp_path, change, says):
    series(tmp_path / "s", stack(), change=change)
    with pytest.raises(DataError, match=says):
        found(dicom_folder.DicomFolder, tmp_path)


def test_a_lone_slice_without_a_plane_has_no_spacing(tmp_path):
    def flat(k, part):
        part.ImageOrientationPatient = [1, 0, 0, 1, 0, 0]

    series(tmp_path / "s", stack((1, 6, 7)), change=flat)
    with pytest.raises(DataError, match="000.dcm has no spacing"):
        found(dicom_folder.DicomFolder, tmp_path)


def test_a_series_without_a_spacing_is_a_corrupt_item_of_its_set(tmp_path):
    for split in ("train", "val"):
        series(tmp_path / "d" / split / "s", stack(), spacing=(1.0, 1.0, 1.0))
    series(tmp_path / "d" / "train" / "bad", stack(),
           change=lambda k, p: setattr(p, "PixelSpacing", [0, 0]))  # fmt: skip
    builder = table.prepared(f"dicom_folder:{tmp_path / 'd'}", (5, 6, 7, 1), str(tmp_path / "data"))
    assert set(manifest.left_out(pathlib.Path(builder.data_dir))) == {"train/bad"}


def test_mixed_sizes_and_damaged_slices_are_named(tmp_path):
    series(tmp_path / "s", stack(), uid="1.2.3")
    series(tmp_path / "s", stack((1, 4, 7)), uid="1.2.3", names=["zz.dcm"])
    with pytest.raises(DataError, match=r"zz.dcm has Rows 4, and .*000.dcm 6"):
        found(dicom_folder.DicomFolder, tmp_path)
    (tmp_path / "s" / "zz.dcm").write_bytes(b"no slice")
    with pytest.raises(DataError, match=r"zz.dcm cannot be read"):
        found(dicom_folder.DicomFolder, tmp_path)
    (tmp_path / "s" / "zz.dcm").unlink()
    whole = (tmp_path / "s" / "002.dcm").read_bytes()
    (tmp_path / "s" / "002.dcm").write_bytes(whole[:-20])
    (one,) = found(dicom_folder.DicomFolder, tmp_path)
    with pytest.raises(DataError, match=r"002.dcm cannot be decoded"):
        dicom_folder.DicomFolder.read(one)


def test_what_is_dark_where_there_is_more_is_turned_over(tmp_path):
    def negative(k, part):
        part.PhotometricInterpretation = "MONOCHROME1"

    series(tmp_path / "s", stack(), change=negative)
    (one,) = found(dicom_folder.DicomFolder, tmp_path)
    np.testing.assert_array_equal(
        dicom_folder.DicomFolder.read(one)[0], -stack()[:, ::-1, ::-1]
    )  # fmt: skip


def test_a_series_that_pydicom_ships(tmp_path):
    shutil.copytree(DICOM / "98892001" / "CT5N", tmp_path / "CT5N")
    (one,) = found(dicom_folder.DicomFolder, tmp_path)
    assert one.size == (5, 16, 16)
    assert one.spacing[0] == pytest.approx(2.5)
    volume = dicom_folder.DicomFolder.read(one)[0]
    # from the lowest place, which is the last by name
    lowest = pydicom.dcmread(DICOM / "98892001" / "CT5N" / "3353")
    expected = lowest.pixel_array * lowest.RescaleSlope + lowest.RescaleIntercept
    np.testing.assert_array_equal(volume[0], expected[::-1, ::-1])
    with pytest.raises(DataError, match="none is missing"):
        shutil.copytree(DICOM / "77654033" / "CT2", tmp_path / "CT2")
        found(dicom_folder.DicomFolder, tmp_path)
