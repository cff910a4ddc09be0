import collections

import numpy as np
import pytest
import scipy.ndimage

from nrdm_jax.data import voxels
from nrdm_jax.sampling import meshes, views


def ball(size, radius, middle=None):
    """(size, size, size) density of a ball, 1 inside, 0 outside, smooth over a voxel."""
    middle = np.full(3, size / 2) if middle is None else np.asarray(middle)
    places = np.stack(np.meshgrid(*[np.arange(size) + 0.5] * 3, indexing="ij"), axis=-1)
    return np.clip(radius + 0.5 - np.linalg.norm(places - middle, axis=-1), 0, 1)


def signed_volume(corners, faces):
    """By Gauss's theorem: positive, if corners go round counterclockwise seen from outside."""
    a, b, c = np.moveaxis(corners[faces], 1, 0)
    return np.einsum("fk,fk->", a, np.cross(b, c)) / 6


def is_closed(faces):
    """Each side of a triangle is in exactly one other, which goes along it the other way."""
    sides = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    count = collections.Counter(map(tuple, sides.tolist()))
    return max(count.values()) == 1 and all((b, a) in count for a, b in count)


@pytest.mark.parametrize("radius", [5.0, 6.5, 11.0])
def test_a_ball_has_its_volume_and_place(radius):
    middle = (13.2, 12.0, 12.6)
    corners, faces = meshes.surface(ball(25, radius, middle), 0.5)
    assert is_closed(faces)
    assert signed_volume(corners, faces) == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.03)
    np.testing.assert_allclose(corners.mean(axis=0), middle, atol=0.1)
    # Euler: V - E + F = 2 of a surface without holes; three sides to two triangles
    assert len(corners) - len(faces) // 2 == 2


def test_where_a_density_is_linear_the_surface_is_exact():
    x, y, z = np.meshgrid(*[np.arange(9) + 0.5] * 3, indexing="ij")
    corners, _ = meshes.surface(20 - 2 * x - y - 0.5 * z, 7.3)
    inner = corners[(corners > 0.5).all(axis=1) & (corners < 8.5).all(axis=1)]
    assert len(inner) > 50
    np.testing.assert_allclose(20 - inner @ (2.0, 1.0, 0.5), 7.3, atol=0.03)


@pytest.mark.parametrize("seed", range(3))
def test_anything_is_closed(seed):
    """Noise, up to the border, has every way in which eight corners can lie, and values that are
    exactly at the level."""
    density = np.random.default_rng(seed).integers(0, 5, (7, 8, 9)).astype(float)
    corners, faces = meshes.surface(density, 2.0)
    assert is_closed(faces) and len(np.unique(faces)) == len(corners)
    a, b, c = np.moveaxis(corners[faces], 1, 0)
    assert np.linalg.norm(np.cross(b - a, c - a), axis=1).min() > 0
    assert signed_volume(corners, faces) > 0


def test_the_tetrahedra_fill_the_cube():
    volumes = [abs(np.linalg.det(t[1:] - t[0])) / 6 for t in meshes.TETRAHEDRA]
    assert sum(volumes) == pytest.approx(1.0)


def test_what_fills_the_array_is_closed_at_its_border():
    corners, faces = meshes.surface(np.ones((4, 5, 6)), 0.5)
    assert is_closed(faces)
    np.testing.assert_allclose(np.ptp(corners, axis=0), (4, 5, 6), atol=1e-9)
    assert signed_volume(corners, faces) == pytest.approx(4 * 5 * 6, rel=0.1)


def test_of_nothing_there_is_no_surface(tmp_path):
    corners, faces = meshes.surface(np.zeros((4, 4, 4)), 0.5)
    assert corners.shape == (0, 3) and faces.shape == (0, 3)
    meshes.write_obj(tmp_path / "a.obj", corners, faces)
    meshes.write_ply(tmp_path / "a.ply", corners, faces)
    assert (views.rendered(np.zeros((4, 4, 4)), 0.5, size=16) == 255).all()


def read_ply(path):
    """By the format's definition, from its header."""
    header, data = path.read_bytes().split(b"end_header\n", 1)
    lines = header.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    vertices, faces = (int(line.split()[-1]) for line in lines if line.startswith("element"))
    corners = np.frombuffer(data, "<f4", 3 * vertices).reshape(-1, 3)
    rows = np.frombuffer(data[12 * vertices :], [("n", "u1"), ("c", "<i4", 3)])
    assert len(rows) == faces and (rows["n"] == 3).all()
    return corners, rows["c"]


def test_files_hold_the_mesh_and_voxelise_to_the_shape_again(tmp_path):
    """Three bars, unlike their mirror image. Through OBJ and back they are there, and at most what
    is beside them, whose border their surface is."""
    density = np.zeros((16, 16, 16))
    density[:, :3, :3] = density[:3, :, :3] = density[:3, :3, :] = 1
    density[12:, 3:6, :3] = density[:3, 12:, 3:6] = 1
    mesh = meshes.upright(*meshes.surface(density, 0.5), density.shape)
    assert signed_volume(*mesh) == pytest.approx(density.sum() / 16**3, rel=0.15)
    meshes.write_obj(tmp_path / "a.obj", *mesh)
    meshes.write_ply(tmp_path / "a.ply", *mesh)
    corners, faces = voxels.read_obj((tmp_path / "a.obj").read_text(), "a.obj")
    for found, atol in (((corners, faces), 1e-5), (read_ply(tmp_path / "a.ply"), 1e-6)):
        np.testing.assert_allclose(found[0], mesh[0], atol=atol)
        np.testing.assert_array_equal(found[1], mesh[1])
    again = voxels.voxelised(voxels.from_obj_axes(corners), faces, 16)
    beside = scipy.ndimage.binary_dilation(density, np.ones((3, 3, 3)))
    assert again[density > 0].all() and not again[~beside].any()
    assert not again[::-1][density > 0].all() and not again[:, ::-1][density > 0].all()
    assert not again[:, :, ::-1][density > 0].all() and not again.T[density > 0].all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.obj", "a.ply"]


def test_views_show_a_ball_as_a_disc_lit_from_the_upper_left():
    size, radius = 96, 8.0
    shown = views.rendered(ball(20, radius) * 2 - 1, 0.0, size)
    assert shown.shape == (size, 4 * size, 1) and shown.dtype == np.uint8
    for view in np.split(shown[..., 0], 4, axis=1):
        rows, columns = np.nonzero(view < 255)
        step = np.linalg.norm((24, 24, 24)) / size
        assert len(rows) * step**2 == pytest.approx(np.pi * radius**2, rel=0.05)
        np.testing.assert_allclose((rows.mean(), columns.mean()), (size - 1) / 2, atol=0.6)
        upper_left, lower_right = view[38, 38].astype(int), view[57, 57].astype(int)
        assert upper_left > lower_right + 30


def test_views_go_round_from_the_front():
    """A ball above at the back (high y) and right of a block on the ground in front."""
    density = ball(24, 3.0, (19.0, 20.0, 20.0))
    from_front, from_right, from_back, _ = np.split(views.rendered(density, 0.5), 4, axis=1)

    def across(view):
        return np.nonzero(view[..., 0] < 255)[1].mean() / view.shape[1]

    assert all(np.nonzero(v[..., 0] < 255)[0].mean() < 48 for v in (from_front, from_right))
    # Seen from the front, 30 degrees to one side, the right is right; from behind it is left.
    assert across(from_front) > 0.55 and across(from_back) < 0.45
    axes = views.axes_of(30.0)
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
