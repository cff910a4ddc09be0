import numpy as np
import pytest

from nrdm_jax.data import volumes
from nrdm_jax.data.errors import DataError


def ball(shape, spacing, middle, radius):
    """1 within a ball, by places in mm, and 0 outside, smooth over a millimetre."""
    axes = [(np.arange(n) + 0.5) * s for n, s in zip(shape, spacing, strict=True)]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1) - np.asarray(middle)
    return np.clip(radius + 0.5 - np.linalg.norm(places, axis=-1), 0, 1).astype(np.float32)


def middle_of_mass(values):
    places = np.stack(np.meshgrid(*map(np.arange, values.shape), indexing="ij"), axis=-1)
    return (places * values[..., None]).sum(axis=(0, 1, 2)) / values.sum()


def test_windows_do_not_see_single_bright_voxels():
    volume = np.random.default_rng(0).uniform(100, 200, (20, 20, 20))
    volume[3, 4, 5], volume[0, 0, 0] = 1e6, np.nan
    shown = volumes.windowed(volume, "scan")
    assert shown.dtype == np.float32 and shown[3, 4, 5] == 1 and shown[0, 0, 0] == 0
    inside = volume[10, 10]
    np.testing.assert_allclose(shown[10, 10], np.clip((inside - 100.5) / 99, 0, 1), atol=0.01)


@pytest.mark.parametrize("value", [7.0, np.nan])
def test_what_shows_nothing_is_an_error(value):
    with pytest.raises(DataError, match="scan 3 has"):
        volumes.windowed(np.full((4, 4, 4), value), "scan 3")


def test_same_voxels_are_cut_and_never_interpolated():
    volume = np.random.default_rng(0).uniform(size=(7, 8, 5)).astype(np.float32)
    out = volumes.fitted(volume, (2.0, 2.0, 2.0), 2.0, (4, 8, 8))
    np.testing.assert_array_equal(out[:, :, 2:7], volume[1:5])
    assert not out[:, :, :2].any() and not out[:, :, 7:].any()


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 1.0, 1.0), (0.7, 2.5, 1.2)])
def test_a_ball_stays_a_ball_of_its_size_whatever_the_spacing(spacing):
    extent = np.asarray((48.0, 40.0, 44.0))
    shape = tuple(np.rint(extent / spacing).astype(int))
    middle, radius = np.asarray(shape) * spacing / 2 + (3.0, -4.0, 2.0), 11.0
    voxel = 1.5
    out = volumes.fitted(ball(shape, spacing, middle, radius), spacing, voxel, (32, 32, 32))
    assert out.sum() * voxel**3 == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.03)
    np.testing.assert_allclose(
        (middle_of_mass(out) - 15.5) * voxel, (3.0, -4.0, 2.0), atol=0.1
    )  # fmt: skip
    places = np.argwhere(out > 0.5)
    across = (places.max(axis=0) - places.min(axis=0) + 1) * voxel
    np.testing.assert_allclose(across, 2 * radius, atol=voxel + max(spacing) / 2)


def test_what_would_be_smoothed_for_hours_is_refused():
    needle = np.broadcast_to(np.float32(1), (2**13, 16, 33))
    with pytest.raises(DataError, match=r"of \[0.001, 1000.0, 1000.0\] mm takes 2.*products"):
        volumes.fitted(needle, (1e-3, 1e3, 1e3), 1e3, (4, 4, 4))
    largest = 8 * 32 + 1  # products a voxel, where the new ones are 64 times as large
    assert volumes.MOST_VOXELS * largest < volumes.MOST_PRODUCTS


@pytest.mark.parametrize("voxel", [0.8, 1.0, 1.7, 2.0, 3.0])
def test_masks_stay_classes_and_lie_on_their_scan(voxel):
    """A ball of one class in a block of another: no class between them comes up, and they are of
    the size and at the place that their scans would have."""
    spacing, shape = (1.0, 1.0, 2.0), (40, 44, 20)
    inner = ball(shape, spacing, (22.0, 20.0, 19.0), 9.0) > 0.5
    outer = np.zeros(shape, bool)
    outer[6:36, 4:40, 3:18] = True
    mask = np.where(inner, 2, outer * 7).astype(np.uint8)
    size = (24, 24, 24)
    found = volumes.fitted_mask(mask, spacing, voxel, size)
    assert found.dtype == np.uint8 and set(np.unique(found)) <= {0, 2, 7}
    assert 2 in found
    for here, before in ((found == 2, mask == 2), (found > 0, mask > 0)):
        share = volumes.fitted(before.astype(np.float32), spacing, voxel, size)
        assert abs(here.sum() / share.sum() - 1) < 0.03 + 0.04 * voxel
        np.testing.assert_allclose(middle_of_mass(here), middle_of_mass(share), atol=0.35)


def test_a_nearest_voxel_would_be_beside_its_scan():
    """Halved, a mask moves by half of an old voxel if the nearest is taken: `fitted_mask` does
    not."""
    mask = np.zeros((16, 16, 16), np.uint8)
    mask[5:11, 5:11, 5:11] = 1  # its middle is the volume's
    found = volumes.fitted_mask(mask, (1.0, 1.0, 1.0), 2.0, (8, 8, 8))
    np.testing.assert_array_equal(found, found[::-1, ::-1, ::-1])
    assert found.any() and found.max() == 1


def test_one_edge_holds_nine_of_ten():
    sizes = np.asarray([[10, 10, 10]] * 9 + [[100, 10, 10]])
    spacings = np.ones((10, 3)) * (1.0, 2.0, 1.0)
    assert volumes.holding_edge(sizes, spacings, (10, 10, 10)) == 2.0
    assert volumes.holding_edge(sizes, spacings, (10, 10, 10), share=1.0) == 10.0


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR", "PIR", "ALI"])
def test_orientations_lead_to_one(codes):
    orientations = pytest.importorskip("nibabel.orientations")
    affine = np.diag([1.0, 2.0, 3.0, 1.0])  # [x, y, z]
    affine[:3, 3] = 5, 6, 7
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    turn = orientations.ornt_transform(
        orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(codes)
    )
    turned = orientations.apply_orientation(array, turn)
    stored = affine @ orientations.inv_ornt_aff(turn, array.shape)
    found, spacing = volumes.canonical(turned, stored)
    np.testing.assert_array_equal(found, array.T)
    assert spacing == (3.0, 2.0, 1.0)
