"""Data sets prepared, checked and shown."""

import pathlib
import time

from nrdm_jax.data import contents, manifest
from nrdm_jax.data.builders import table
from nrdm_jax.data.errors import DataError
from nrdm_jax.sampling import clips, contact_sheets, pictures, scans, writers


def prepare(name: str, shape: tuple[int, ...] | None, data_dir: str, **options) -> dict:
    """Prepares a set, or finds it prepared. Options, and what is raised, as of `table.prepared`."""
    begun = time.monotonic()
    builder = table.prepared(name, shape, data_dir, **options)
    return _told(builder) | {"seconds": round(time.monotonic() - begun, 1)}


def verify(name: str, shape: tuple[int, ...] | None, data_dir: str, *, stride: int) -> dict:
    """Checks the files of a prepared set against its manifest.

    Raises:
      ValueError: as `table.opened`.
      DataError: it is not prepared, or files are not as they were written, naming them.
    """
    builder = table.opened(name, shape, data_dir, stride=stride)
    if not builder.is_prepared():
        raise DataError(
            f"data set {builder.info.full_name} is not prepared in {data_dir}; "
            f"`nrdm data prepare {name}` does it"
        )
    return _told(builder) | {"files": manifest.verify(pathlib.Path(builder.data_dir))}


def show(
    name: str,
    shape: tuple[int, ...] | None,
    data_dir: str,
    out: pathlib.Path,
    *,
    examples: int,
    **options,
) -> dict:
    """Prints what is in a set, prepared on first use, and writes pictures of `examples` of its
    records into `out`: sheet.png; clips.gif of clips; slices.png of clips and volumes.

    Raises:
      ValueError, DataError: as `table.prepared` and `contents.take`.
    """
    builder = table.prepared(name, shape, data_dir, **options)
    told = _told(builder)
    print(f"{told['name']} in {told['dir']}")
    for feature, kind in builder.info.features.items():
        print(f"  {feature:12} {' x '.join(map(str, kind.shape)) or 'one'} {_type_of(kind)}")
    classes = {split: contents.count_classes(builder, split) for split in builder.info.splits}
    for split, counts in classes.items():
        line = ", ".join(f"{label} {count:,}" for label, count in counts.items())
        print(f"  {split}: {told['records'][split]:,} records: {line}")
    some = contents.take(builder, "train", examples)
    for caption in some.captions[:8]:
        print(f"  caption: {caption}")
    out.mkdir(parents=True, exist_ok=True)
    return told | {"classes": classes, "files": [str(path) for path in _draw(some, out)]}


def _draw(some: contents.Some, out: pathlib.Path) -> list[pathlib.Path]:
    shape, x = some.x.shape[1:], some.x
    if some.kind == "latent" or writers.form_of(shape) == "arrays":
        print(f"  records of {some.kind} {shape} are no pictures; none is drawn")
        return []
    files = [out / "sheet.png"]
    middles = x if some.kind == "image" else x[:, shape[0] // 2]
    if some.kind == "volume":
        middles = middles[:, ::-1]  # the front up
    pictures.write_png(files[0], contact_sheets.contact_sheet(middles, some.titles))
    if some.kind != "image":
        files.append(out / "slices.png")
        sheet = clips.strips if some.kind == "clip" else scans.sheet
        pictures.write_png(files[-1], sheet(x[:16]))
    if some.kind == "clip":
        files.append(out / "clips.gif")
        clips.write_gif(files[-1], clips.sheets(x))
    return files


def _told(builder) -> dict:
    directory = pathlib.Path(builder.data_dir)
    return {
        "name": builder.info.full_name,
        "dir": str(directory),
        "records": {name: split.num_examples for name, split in builder.info.splits.items()},
        "bytes": sum(split.num_bytes for split in builder.info.splits.values()),
        "left_out": len(manifest.left_out(directory)),
    }


def _type_of(kind) -> str:
    if hasattr(kind, "num_classes"):
        return f"of {kind.num_classes} classes"
    return "text" if type(kind).__name__ == "Text" else str(getattr(kind.np_dtype, "__name__", ""))
