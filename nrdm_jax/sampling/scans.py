"""Scans, (N, D, H, W, 1) uint8 indexed [z, y, x] (up, to the front, to the right), as files."""

import gzip
import importlib.util
import pathlib

import numpy as np

from nrdm_jax.sampling.files import tell_once, whole

AT = (0.3, 0.5, 0.7)  # where slices are shown, of each axis


def planes(scan: np.ndarray) -> list[np.ndarray]:
    """(D, H, W) -> slices as one looks at them, three of each kind: from the head, front up; from
    the back, head up; from the right, head up and front to the right. Left is left."""
    z, y, x = ([int(at * size) for at in AT] for size in scan.shape)
    return (
        [scan[i, ::-1, :] for i in z]
        + [scan[::-1, i, :] for i in y]
        + [scan[::-1, :, i] for i in x]
    )


def sheet(scans: np.ndarray, gap: int = 2) -> np.ndarray:
    """(N, D, H, W, 1) uint8 -> one picture (height, width, 1), a row of `planes` each, on white;
    small ones enlarged."""
    rows = []
    for scan in scans[..., 0]:
        parts = planes(scan)
        height = max(len(part) for part in parts)
        row = [np.full((height, gap), 255, np.uint8)]
        for part in parts:
            short = height - len(part)
            padding = ((short // 2, short - short // 2), (0, gap))
            row.append(np.pad(part, padding, constant_values=255))
        rows += [np.concatenate(row, axis=1), np.full((gap, sum(r.shape[1] for r in row)), 255)]
    picture = np.concatenate([rows[1], *rows]).astype(np.uint8)
    factor = max(1, 128 // max(scans.shape[1:3]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)[..., None]


def write_nifti(path: pathlib.Path, scan: np.ndarray, voxel: float) -> bool:
    """(D, H, W) uint8 -> NAME.nii.gz, [x, y, z] in RAS+ with its middle at 0; whether nibabel is
    there to do so (the extra `medical`). The same scan makes the same bytes.

    Args:
      path: of the file.
      scan: indexed [z, y, x].
      voxel: edge, mm.
    """
    if importlib.util.find_spec("nibabel") is None:
        tell_once(
            "no NIfTI of volumes, only pictures and samples.npy: nibabel is absent; "
            "bash launch/local.sh --setup-only --extras=medical"
        )
        return False
    import nibabel

    array = np.ascontiguousarray(scan.T)
    affine = np.diag([voxel, voxel, voxel, 1.0])
    affine[:3, 3] = -voxel * (np.asarray(array.shape) - 1) / 2
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    with whole(path) as partial:
        partial.write_bytes(gzip.compress(image.to_bytes(), mtime=0))
    return True
