"""Sweet Home 3D's furniture: 820 meshes with 612 names in 12 categories, as voxels (CC0 and CC-BY).

Read from the catalogues (.sh3f) of Debian's sweethome3d-furniture: in
/usr/share/sweethome3d/furniture, in .cache/debian of the clone, or in a folder named by
NRDM_SWEETHOME3D. A volume is (n, n, n, 1), indexed [z, y, x], as each model stands in a room
(`data.voxels`). Models of one name may be variants of one another: a tenth is held out by
name.
"""

import hashlib
import os
import pathlib
import re
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from nrdm_jax.bounded_archives import open_archive, read_member
from nrdm_jax.data import voxels
from nrdm_jax.data.builders.items import ItemsBuilder
from nrdm_jax.data.errors import DataError, named
from nrdm_jax.data.shard_files import Item

ENVIRONMENT = "NRDM_SWEETHOME3D"
# Where launch/local.sh unpacks the package for a config that asks for it.
UNPACKED = (
    pathlib.Path(__file__).resolve().parents[3] / ".cache" / "debian" / "sweethome3d-furniture"
)
INSTALLED = pathlib.Path("/usr/share/sweethome3d/furniture")
PROPERTIES = "PluginFurnitureCatalog.properties"
ENTRY = re.compile(r"^(\w+)#([0-9]{1,9})\s*[=:]\s*(.*)$")
MOST_TEXT = 2**26  # bytes of a mesh, or of the properties of all models
CLASSES = (
    "Bathroom",
    "Bedroom",
    "Characters",
    "Doors and windows",
    "Exterior",
    "Kitchen",
    "Lights",
    "Living room",
    "Miscellaneous",
    "Office",
    "Staircases",
    "Vehicles",
)


def is_heldout(name: str) -> bool:
    return hashlib.sha256(name.encode()).digest()[0] < 256 // 10


class Sweethome3dConfig(tfds.core.BuilderConfig):
    """Side of the cube in voxels."""

    def __init__(self, size: int = 32):
        super().__init__(name=f"{size}", version="1.0.0")
        self.size = size


class Sweethome3d(ItemsBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Features: volume (size, size, size, 1) uint8, 0 and 255; label (12 categories), caption."""

    VERSION = tfds.core.Version("1.0.0")
    SHAPE = (32, 32, 32, 1)
    ITEMS_PER_SHARD = 64  # a tenth of a second each

    @staticmethod
    def config_for(shape: tuple[int, ...]) -> Sweethome3dConfig:
        """Raises:
        ValueError: the shape is no cube of one channel.
        """
        if len(shape) != 4 or shape != (shape[0],) * 3 + (1,):
            raise ValueError(f"data.shape is {shape}; sweethome3d has (n, n, n, 1) for any n")
        return Sweethome3dConfig(shape[0])

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.size
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            license="CC0 and CC-BY 3.0, by catalogue",
            homepage="https://www.sweethome3d.com",
            features=tfds.features.FeaturesDict(
                {
                    "volume": tfds.features.Tensor(shape=(size, size, size, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(names=CLASSES),
                    "caption": tfds.features.Text(),
                }
            ),
        )

    def _items(self):
        found: dict[str, list[Item]] = {"train": [], "heldout": []}
        for path in catalogues():
            for number, model in sorted(models(path).items()):
                split = "heldout" if is_heldout(caption_of(model["name"])) else "train"
                found[split].append((f"{path.stem} {number}", (path, model)))
        return found

    def _examples(self, content: tuple[pathlib.Path, dict[str, str]]) -> Iterator[dict]:
        path, model = content
        inside = voxelised(path, model, self.builder_config.size)
        yield {
            "volume": inside[..., None] * np.uint8(255),
            "label": model["category"],
            "caption": caption_of(model["name"]),
        }


def catalogues() -> list[pathlib.Path]:
    """Raises:
    DataError: there are none.
    """
    fetched = UNPACKED if UNPACKED.exists() else INSTALLED
    folder = pathlib.Path(os.environ.get(ENVIRONMENT, fetched))
    found = sorted(folder.rglob("*.sh3f"))
    if not found:
        raise DataError(
            f"no catalogues (.sh3f) in {folder}; apt-get install sweethome3d-furniture, or apt-get "
            "download sweethome3d-furniture && dpkg -x sweethome3d-furniture_*.deb FOLDER and set "
            f"{ENVIRONMENT}=FOLDER"
        )
    return found


def models(catalogue: pathlib.Path) -> dict[int, dict[str, str]]:
    """Number -> the properties of a model: name, category, model (a file), modelRotation, …

    Raises:
      DataError: the catalogue is damaged, or a model has no name, file or known category.
    """
    with named(str(catalogue)), open_archive(catalogue) as archive:
        text = read_member(archive, PROPERTIES, MOST_TEXT).decode("latin-1")
    found: dict[int, dict[str, str]] = defaultdict(dict)
    for line in text.splitlines():
        entry = ENTRY.match(line.strip())
        if entry:
            # Properties of Java are in Latin-1, and what it lacks is \uNNNN.
            value = re.sub(r"\\u([0-9a-fA-F]{4})", lambda hit: chr(int(hit[1], 16)), entry[3])
            value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            found[int(entry[2])][entry[1]] = value.strip()
    for number, model in found.items():
        absent = {"name", "category", "model"} - model.keys()
        if absent or model["category"] not in CLASSES:
            raise DataError(
                f"{catalogue}, model {number}: "
                + (f"without {', '.join(sorted(absent))}" if absent else model["category"])
            )
    return found


def caption_of(name: str) -> str:
    """`Bedside table` -> `bedside table`; names of all capitals, as TV, stay."""
    return " ".join(word if word.isupper() else word.lower() for word in name.split())


def voxelised(catalogue: pathlib.Path, model: dict[str, str], size: int) -> np.ndarray:
    """(size, size, size) bool, see `voxels.voxelised`.

    Raises:
      DataError: the mesh is absent or damaged.
    """
    file = model["model"].lstrip("/")
    name = f"{catalogue}, {file}"
    with named(name):
        with open_archive(catalogue) as archive:
            text = read_member(archive, file, MOST_TEXT).decode("latin-1")
        corners, triangles = voxels.read_obj(text, name)
        if "modelRotation" in model:  # how it stands, row by row
            corners = corners @ np.asarray(model["modelRotation"].split(), float).reshape(3, 3).T
        return voxels.voxelised(voxels.from_obj_axes(corners), triangles, size)
