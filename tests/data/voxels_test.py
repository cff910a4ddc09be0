import numpy as np
import pytest

from nrdm_jax.data import voxels
from nrdm_jax.data.errors import DataError

CUBE = """# a box of 1 x 2 x 3
v 0 0 0
v 1 0 0
v 1 2 0
v 0 2 0
v 0 0 3
v 1 0 3
v 1 2 3
v 0 2 3
vn 0 0 1
f 1/1/1 2/2/1 3/3/1 4/4/1
f 5//1 6//1 7//1 8//1
f -8 -7 -3 -4
f 4 3 7 8
f 1 4 8 5
f 2 3 7 6
"""


def sphere(count=40):
    """Corners and triangles of a sphere of radius 1, by longitude and latitude."""
    longitude, latitude = np.meshgrid(
        np.linspace(0, 2 * np.pi, count), np.linspace(-np.pi / 2, np.pi / 2, count), indexing="ij"
    )
    corners = np.stack(
        [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude),
         np.sin(latitude)], axis=-1,
    ).reshape(-1, 3)  # fmt: skip
    first = (np.arange(count - 1)[:, None] * count + np.arange(count - 1)[None]).ravel()
    faces = np.stack([first, first + 1, first + count, first + count + 1], axis=1)
    return corners, np.concatenate([faces[:, [0, 1, 2]], faces[:, [1, 2, 3]]])


def test_obj_files_with_every_kind_of_number():
    corners, triangles = voxels.read_obj(CUBE, "cube.obj")
    assert corners.shape == (8, 3) and triangles.shape == (12, 3)
    a, b, c = np.moveaxis(corners[triangles], 1, 0)
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2
    assert area == pytest.approx(2 * (1 * 2 + 2 * 3 + 1 * 3))
    np.testing.assert_array_equal(triangles[4:6], [[0, 1, 5], [0, 5, 4]])


@pytest.mark.parametrize(
    ("text", "says"),
    [("v 1 2\nf 1 1 1", "a.obj, line 1"), ("v 1 2 3\nf 1 2 3", "corners that it lacks"),
     ("v 1 2 3\nf 1 x 1", "a.obj, line 2: 'f 1 x 1'"), ("v 1 2 3\n", "no faces")],
)  # fmt: skip
def test_damaged_obj_files_are_named(text, says):
    with pytest.raises(DataError, match=says):
        voxels.read_obj(text, "a.obj")


def test_a_box_is_full_and_as_it_stands():
    corners, triangles = voxels.read_obj(CUBE, "cube.obj")
    inside = voxels.voxelised(voxels.from_obj_axes(corners), triangles, 24)
    # z up is the file's y, of 2; y to the back is -z, of 3; x is 1
    expected = np.zeros((24, 24, 24), bool)
    expected[4:20, :, 8:16] = True
    np.testing.assert_array_equal(inside, expected)


def test_up_is_up_and_the_front_is_in_front():
    """A step: tall at the back (-z of the file), low at the front."""
    corners = voxels.from_obj_axes(np.asarray([[0.5, 2.0, -3.0], [0.5, 0.0, 1.0]]))
    top_back, low_front = corners
    assert top_back[0] > low_front[0] and top_back[1] > low_front[1]


def test_a_sphere_is_full_of_its_volume_and_open_ones_are_shells():
    size = 32
    corners, triangles = sphere()
    inside = voxels.voxelised(corners, triangles, size)
    # between the ball, and the ball and every voxel that its surface touches
    low, high = (4 / 3 * np.pi * (size / 2 + more) ** 3 for more in (-0.5, 1.0))
    assert low < inside.sum() < high
    assert inside[16, 16, 16]
    open_above = triangles[corners[triangles][:, :, 2].max(axis=1) < 0.3]
    bowl = voxels.voxelised(corners, open_above, size)
    assert not bowl[16, 16, 16] and bowl.sum() < 0.3 * inside.sum()


def test_no_way_leads_inside_through_a_surface_at_any_angle():
    """A thin closed box, turned: were there a hole, it would not be filled."""
    corners, triangles = voxels.read_obj(CUBE, "cube.obj")
    for seed in range(8):
        turn, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
        turned = corners @ turn
        size = 40
        inside = voxels.voxelised(turned, triangles, size)
        scale = size / np.ptp(turned, axis=0).max()
        assert inside.sum() > 6 * scale**3  # at least the volume of the box


def test_a_point_is_refused():
    with pytest.raises(DataError, match="extent"):
        voxels.voxelised(np.zeros((3, 3)), np.asarray([[0, 1, 2]]), 8)
