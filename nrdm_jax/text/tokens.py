"""Captions as tokens: (n, T) int32, a vocabulary's numbers plus one, 0 behind the text.

A caption of nothing but space has no tokens, whatever a vocabulary would put around it.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from nrdm_jax.bounded_files import MOST_JSON, parse_json, read_bytes
from nrdm_jax.text.growth import check_growth

# (captions, T) -> (tokens (n, T) int32, whether the caption was longer (n,) bool).
Tokenize = Callable[[Sequence[str], int], tuple[np.ndarray, np.ndarray]]

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
        content = read_bytes(path, MOST_JSON)
        # Before the library has it, which normalizes the words that are added to the vocabulary.
        check_growth(parse_json(content, unique=True))
        vocabulary = Tokenizer.from_buffer(content)
        vocabulary.no_padding()
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


def _padded(rows: Sequence[Sequence[int]], length: int) -> np.ndarray:
    tokens: np.ndarray = np.zeros((len(rows), length), np.int32)
    for row, numbers in zip(tokens, rows, strict=True):
        row[: len(numbers)] = np.asarray(numbers, np.int32) + 1
    return tokens
