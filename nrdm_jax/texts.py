"""The text of a run, from a config: who reads captions, where, and what networks are given of them.

bytes are tokens for the network's own encoder. The others are trained already and stay as they are:
their states are made once and kept with the data (text.where=records), or of the tokens in every
batch, by a program of its own that runs before the step (text.where=step). The network is given the
same either way.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from nrdm_jax import config as configuration
from nrdm_jax import networks
from nrdm_jax.data import captions
from nrdm_jax.data.sources import Source
from nrdm_jax.sharding.mesh import batch_sharding, replicated
from nrdm_jax.signatures import Array
from nrdm_jax.text import tokens as tokenizing
from nrdm_jax.text.encoders import ENCODERS, Encoder, open_encoder
from nrdm_jax.text.transformer import Network

ENCODED = 64  # captions of samples at a time
KEPT = "texts"  # beside the prepared data: states of captions


def is_read(config) -> bool:
    """Whether captions are."""
    return config.text.encoder != "none"


def source(config, records: Source, data_dir: str) -> Source:
    """The records with what is given of their captions, where these are read; and without their
    classes, where no network is told of them.

    Args:
      records: that have captions, where they are read.
      data_dir: under which states are kept.

    Raises:
      ValueError: as `encoder`.
      DataError: the records have no captions.
    """
    given: Source = records if configuration.with_class(config) else captions.Unlabelled(records)
    if not is_read(config):
        return given
    t = config.text
    different, rows = captions.different(records)
    tokens, cut = _tokens(config, different)
    if cut.any():
        longest = max(
            (text for text, is_cut in zip(different, cut, strict=True) if is_cut), key=len
        )
        print(
            f"text: {int(np.isin(rows, np.flatnonzero(cut)).sum())} of {len(rows)} captions are "
            f"cut to text.length={t.length}, such as {longest[:100]!r}",
            flush=True,
        )
    table: captions.Table = captions.Tokens(tokens)
    name = t.encoder
    if name in ENCODERS:
        frozen = encoder(config)
        name = frozen.fingerprint
        if t.where == "records":
            key = (frozen.fingerprint, t.length, different)
            directory = pathlib.Path(data_dir) / KEPT
            encode = _telling(config, len(different))
            states = captions.encoded(tokens, encode, directory, key)
            _check_width(config, states.states.shape[1])
            table = states
        else:
            _check_words(config, tokens)  # refused now, and not with the first batch
    return captions.CaptionedSource(given, rows, table, fingerprint=f"{name} {t.length}")


def encoder(config) -> Encoder:
    """The encoder of the config that is trained already; opened once a process. Raises as
    `open_encoder`."""
    return _opened(config.text.encoder, config.text.weights)


_opened = functools.lru_cache(maxsize=2)(open_encoder)


def _network(config) -> Network:
    """Raises ValueError: as `Encoder.network`, or it does not fit text.width or text.length."""
    t, found = config.text, encoder(config).network
    _check_width(config, found.width)
    if found.longest is not None and t.length > found.longest:
        raise ValueError(
            f"text.length is {t.length}, but text.encoder={t.encoder} reads {found.longest} tokens "
            f"at most; set it to {found.longest} or less"
        )
    return found


def _check_width(config, width: int) -> None:
    if width != networks.text_width(config):
        raise ValueError(
            f"text.width is {config.text.width}, but the states of text.encoder="
            f"{config.text.encoder} with these weights have {width} channels; set it to {width}"
        )


def _check_words(config, tokens: np.ndarray) -> None:
    """Raises ValueError: the vocabulary has words that the weights lack, and jax would read as NaN;
    or as `_network`."""
    known = len(_network(config).params["words"])
    if tokens.size and tokens.max() > known:
        raise ValueError(
            f"text.encoder={config.text.encoder}, weights {encoder(config).place}: tokenizer.json "
            f"has a word number {tokens.max() - 1}, and the weights have {known} words"
        )


def given_of(config, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """(n,) captions -> what a network is given of them, as a device here computes it. Raises as
    `source`."""
    tokens, _ = _tokens(config, texts)
    if config.text.encoder in ENCODERS:
        _check_words(config, tokens)
    parts = [
        finish(config)({"tokens": tokens[start : start + ENCODED]})
        for start in range(0, len(tokens), ENCODED)
    ]
    return {name: np.concatenate([np.asarray(p[name]) for p in parts]) for name in parts[0]}


def finish(config, mesh: Mesh | None = None) -> Callable[[dict], dict]:
    """What turns a batch of the loader's into one of the step's: tokens into the states of an
    encoder that is trained already. On a mesh, a batch that is divided over it stays so."""
    if config.text.encoder not in ENCODERS:
        return lambda batch: batch

    def finished(batch: dict) -> dict:
        if "tokens" not in batch:
            return batch
        others = {name: value for name, value in batch.items() if name != "tokens"}
        return others | _program(_network(config), mesh)(batch["tokens"])

    return finished


@functools.lru_cache(maxsize=4)
def _program(network: Network, mesh: Mesh | None) -> Callable[[Any], dict[str, Array]]:
    """Compiled: tokens (B, T) -> text, text_mask, text_pooled. The weights are its arguments, so
    that they are no constants of the program, and are put on the devices once."""

    def encode(params, tokens):
        states, pooled = network.encode(params, tokens)
        return {"text": states, "text_mask": tokens > 0, "text_pooled": pooled}

    if mesh is None:
        jitted = jax.jit(encode)
        params = jax.device_put(network.params, jax.local_devices()[0])
    else:
        jitted = jax.jit(encode, out_shardings=batch_sharding(mesh))
        params = jax.device_put(network.params, replicated(mesh))
    return functools.partial(jitted, params)


def _telling(config, count: int) -> captions.EncodeFn:
    """Encodes on one device, and says so once it starts."""
    begun = False

    def encode(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nonlocal begun
        _check_words(config, tokens)
        program = _program(_network(config), None)
        if not begun:
            print(f"text: {count} captions are encoded by {config.text.encoder}", flush=True)
            begun = True
        found = program(tokens)
        return np.asarray(found["text"]), np.asarray(found["text_pooled"])

    return encode


def _tokens(config, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    name, length = config.text.encoder, config.text.length
    tokenize = encoder(config).tokenize if name in ENCODERS else tokenizing.of_bytes
    return tokenize(texts, length)
