"""Samples as files: something to look at first, a file each, and a manifest that says how to make
them again."""

import json
import pathlib
import re
import unicodedata
from collections.abc import Callable

import numpy as np

from nrdm_jax.sampling import clips, meshes, pictures, scans, views
from nrdm_jax.sampling.files import whole

SHOWN = 16  # samples that are on sheets with a row each


def form_of(shape: tuple[int, ...], form: str = "auto") -> str:
    """What examples of this shape are written as, of `FORMS` or arrays.

    auto takes (H, W, 1 or 3) for pictures, (T, H, W, 3) for clips, (D, H, W, 1) for scans, and all
    else for arrays: grey clips, and shapes, cannot be told from scans, and are said to be.

    Raises:
      ValueError: the form is not one of such a shape.
    """
    fitting = {"arrays"}
    if shape[-1] in (1, 3):
        fitting |= {3: {"pictures"}, 4: {"clips"}}.get(len(shape), set())
    if len(shape) == 4 and shape[-1] == 1:
        fitting |= {"scans", "shapes"}
    if form == "auto":
        return next(
            (likely for likely in ("pictures", "scans", "clips") if likely in fitting), "arrays"
        )
    if form not in fitting:
        raise ValueError(
            f"sample.write={form}, and samples are of {shape}; choose auto, or one of "
            f"{', '.join(sorted(fitting))}"
        )
    return form


def write_trajectory(
    directory: pathlib.Path, x: np.ndarray, pixels: np.ndarray, most: int = SHOWN
) -> pathlib.Path:
    """Writes (n, k, *S, C) estimates of n samples on their way and returns the file: a picture of a
    row each of the first `most`, noise on the left, of clips and volumes the frame or slice in the
    middle; the array, of what is no picture.

    Args:
      directory: made where it is absent.
      x: float32, as estimated.
      pixels: the same in uint8, or decoded.
    """
    directory.mkdir(parents=True, exist_ok=True)
    shape = pixels.shape[2:]
    form = form_of(shape)
    if form == "arrays":
        return write_array(directory / "trajectory.npy", x)
    rows = pixels[:most] if form == "pictures" else pixels[:most, :, shape[0] // 2]
    file = directory / "trajectory.png"
    pictures.write_png(
        file, pictures.grid(rows.reshape(-1, *rows.shape[2:]), columns=x.shape[1])
    )  # fmt: skip
    return file


def in_a_name(caption: str, most: int = 40) -> str:
    """`a red car: 2 doors` -> `a-red-car-2-doors`: letters and digits of any script, shortened;
    safe as a part of a file's name everywhere."""
    words = re.sub(r"\W+", "-", unicodedata.normalize("NFC", caption)).strip("-")
    # A file's name may have 255 bytes.
    short = words.encode()[:most].decode("utf-8", "ignore").strip("-")
    return short or "no-text"


def write_array(path: pathlib.Path, x: np.ndarray) -> pathlib.Path:
    with whole(path) as partial, partial.open("wb") as file:
        np.save(file, x)
    return path


def write_samples(
    directory: pathlib.Path,
    x: np.ndarray,
    pixels: np.ndarray,
    manifest: dict,
    *,
    form: str = "auto",
    voxel: float = 1.0,
    each: bool = True,
    original: np.ndarray | None = None,
) -> pathlib.Path:
    """Writes samples into `directory` and returns the file to look at first.

    pictures: grid.png, a PNG each. clips: grid.gif, grid.webp and grid.mp4, slices.png (a row each
    of the first 16), a WebP each. scans: slices.png (a row each of the first 16, from three sides),
    grid.gif (from the feet up), a NIfTI file each. shapes: views.png (a row each of the first 16,
    from four sides), an OBJ and a PLY file each. All but pictures, and whatever else there is,
    samples.npy. manifest.json, the last to be written, lists beside what it is given the file that
    has each sample, of its own by its seed and its caption or label.

    Args:
      directory: made where it is absent.
      x: (n, *S, C) float32, as sampled.
      pixels: the same in uint8, or decoded, (n, *S', C').
      manifest: JSON values; `seeds` and `labels` have n entries, and so have `captions`, if there
        are any.
      form: see `form_of`, of what is seen.
      voxel: of scans, edge in mm.
      each: with a file each.
      original: as pixels, of reconstructions: to the left of each, in what shows several but the
        views of shapes.

    Raises:
      ValueError: as `form_of`.
    """
    form = form_of(pixels.shape[1:], form)
    directory.mkdir(parents=True, exist_ok=True)
    shown = pixels if original is None else np.concatenate([original, pixels], axis=-2)
    first = directory / "samples.npy"
    if form != "pictures":
        write_array(first, x)
    told = [f"label{label}" for label in manifest["labels"]]
    if manifest.get("captions"):
        told = [in_a_name(caption) for caption in manifest["captions"]]
    names = [f"{i:05d}_seed{seed}_{words}" for i, (seed, words) in
             enumerate(zip(manifest["seeds"], told, strict=True))]  # fmt: skip
    files = [first.name if form != "pictures" else "grid.png"] * len(x)
    if form != "arrays":
        write_sheets, write_one = FORMS[form]
        # Of latents, what they were decoded to.
        seen = x if x.shape == pixels.shape else pixels / np.float32(127.5) - 1
        first = write_sheets(directory, seen, shown)
        if each:
            found = [write_one(directory, *one, voxel)
                     for one in zip(names, seen, pixels, strict=True)]  # fmt: skip
            files = [own or file for own, file in zip(found, files, strict=True)]
    with whole(directory / "manifest.json") as partial:
        partial.write_text(json.dumps(manifest | {"form": form, "files": files}, indent=2))
    return first


def _picture_sheets(directory: pathlib.Path, x: np.ndarray, pixels: np.ndarray) -> pathlib.Path:
    pictures.write_png(directory / "grid.png", pictures.grid(pixels))
    return directory / "grid.png"


def _one_picture(directory, stem, x, pixels, voxel) -> str:
    pictures.write_png(directory / f"{stem}.png", pixels)
    return f"{stem}.png"


def _clip_sheets(directory: pathlib.Path, x: np.ndarray, pixels: np.ndarray) -> pathlib.Path:
    pictures.write_png(directory / "slices.png", clips.strips(pixels[:SHOWN]))
    frames = clips.sheets(pixels)
    clips.write_gif(directory / "grid.gif", frames)
    clips.write_webp(directory / "grid.webp", frames)
    clips.write_mp4(directory / "grid.mp4", frames)
    return directory / "grid.gif"


def _one_clip(directory, stem, x, pixels, voxel) -> str:
    clips.write_webp(directory / f"{stem}.webp", pixels)
    return f"{stem}.webp"


def _scan_sheets(directory: pathlib.Path, x: np.ndarray, pixels: np.ndarray) -> pathlib.Path:
    pictures.write_png(directory / "slices.png", scans.sheet(pixels[:SHOWN]))
    clips.write_gif(directory / "grid.gif", clips.sheets(pixels[:, :, ::-1]))  # the front up
    return directory / "slices.png"


def _one_scan(directory, stem, x, pixels, voxel) -> str:
    written = scans.write_nifti(directory / f"{stem}.nii.gz", pixels[..., 0], voxel)
    return f"{stem}.nii.gz" if written else ""


def _shape_sheets(directory: pathlib.Path, x: np.ndarray, pixels: np.ndarray) -> pathlib.Path:
    shown = [views.rendered(_density(shape), 0.0) for shape in x[:SHOWN]]
    pictures.write_png(directory / "views.png", pictures.grid(np.stack(shown), columns=1))
    return directory / "views.png"


def _one_shape(directory, stem, x, pixels, voxel) -> str:
    mesh = meshes.upright(*meshes.surface(_density(x), 0.0), x.shape[:3])
    meshes.write_obj(directory / f"{stem}.obj", *mesh)
    meshes.write_ply(directory / f"{stem}.ply", *mesh)
    return f"{stem}.obj"


def _density(x: np.ndarray) -> np.ndarray:
    """(D, H, W, 1) samples -> (D, H, W), inside above 0."""
    return np.clip(x[..., 0], -1.0, 1.0)


# What shows all samples, (directory, x, pixels) -> the file to look at; and what writes one,
# (directory, name without an ending, x, pixels, voxel) -> the file's name, or none.
FORMS: dict[str, tuple[Callable[..., pathlib.Path], Callable[..., str]]] = {
    "pictures": (_picture_sheets, _one_picture),
    "clips": (_clip_sheets, _one_clip),
    "scans": (_scan_sheets, _one_scan),
    "shapes": (_shape_sheets, _one_shape),
}
