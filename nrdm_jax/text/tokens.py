"""Captions as tokens: (n, T) int32, a vocabulary's numbers plus one, 0 behind the text.

A caption of nothing but space has no tokens, whatever a vocabulary would put around it.
"""

import contextlib
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from nrdm_jax.bounded_files import MOST_JSON, parse_json, read_bytes

# (captions, T) -> (tokens (n, T) int32, whether the caption was longer (n,) bool).
Tokenize = Callable[[Sequence[str], int], tuple[np.ndarray, np.ndarray]]

MOST_GROWTH = 2**16  # of a text, by what a vocabulary replaces in it
BYTES = 257  # the vocabulary of `of_bytes`, its padding included


def of_bytes(captions: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of UTF-8; what is too long ends with the last whole character."""
    whole = [caption.strip().encode("utf-8", "replace") for caption in captions]
    parts = [text[:length].decode("utf-8", "ignore").encode() for text in whole]
    cut = np.asarray([len(part) < len(text) for part, text in zip(parts, whole, strict=True)], bool)
    return _padded([list(part) for part in parts], length), cut


def text_of_bytes(tokens_T: np.ndarray) -> str:
    """The caption of a row of `of_bytes`."""
    return bytes(int(token) - 1 for token in tokens_T if token).decode("utf-8")


def open_vocabulary(path: pathlib.Path) -> Tokenize:
    """Of a tokenizer.json, as Hugging Face's `tokenizers` writes them; the marks that it puts
    around a text stay when the text is cut.

    Raises:
      ValueError: there is no such file, it is none, or the package is not installed; and of what is
        returned, a text cannot be read by it.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ValueError(
            f"{path} is read by the package tokenizers; "
            "bash launch/local.sh --setup-only --extras=text"
        ) from error
    if not path.is_file():
        raise ValueError(f"there is no {path.name} beside the weights, in {path.parent}")
    with _blamed(path, "is no tokenizer"):
        vocabulary = Tokenizer.from_buffer(read_bytes(path, MOST_JSON))
        vocabulary.no_padding()
        _check_growth(vocabulary.normalizer)
    marks = vocabulary.num_special_tokens_to_add(False)

    def tokenize(captions: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        if length <= marks:
            raise ValueError(
                f"text.length is {length}, and {path} puts {marks} tokens around every text; "
                "give more"
            )
        vocabulary.enable_truncation(length)
        texts = [caption.strip() for caption in captions]
        with _blamed(path, "cannot read texts"):
            found = vocabulary.encode_batch(texts)
            rows = [rest.ids if text else [] for text, rest in zip(texts, found, strict=True)]
            cut = np.asarray([bool(rest.overflowing) for rest in found], bool)
            return _padded(rows, length), cut

    return tokenize


@contextlib.contextmanager
def _blamed(path: pathlib.Path, says: str) -> Iterator[None]:
    """Within it, whatever `tokenizers` raises is the file's fault: nothing narrower than Exception,
    and where Rust panics nothing narrower than BaseException."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise ValueError(f"{path} {says}: {error}") from error


def _check_growth(normalizer: Any) -> None:
    """Raises:
    ValueError: what it replaces, one after the other, makes a text over `MOST_GROWTH` times as
      long.
    """
    growth = 1 if normalizer is None else _growth(parse_json(normalizer.__getstate__()))
    if growth > MOST_GROWTH:
        raise ValueError(f"its normalizer makes a text up to {growth:,.0f} times as long")


def _growth(part: dict[str, Any]) -> float:
    if part["type"] == "Sequence":
        return math.prod(map(_growth, part["normalizers"]))
    if part["type"] != "Replace":
        return 1
    replaced = part["pattern"].get("String", "")  # a regular expression may fit between any two
    long = len(part["content"])
    return max(long / len(replaced), 1) if replaced else 1 + long


def _padded(rows: Sequence[Sequence[int]], length: int) -> np.ndarray:
    tokens: np.ndarray = np.zeros((len(rows), length), np.int32)
    for row, numbers in zip(tokens, rows, strict=True):
        row[: len(numbers)] = np.asarray(numbers, np.int32) + 1
    return tokens
