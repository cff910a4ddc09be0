"""Records with what a network is told of their captions.

Many records share a caption, so that each different one is read, encoded and kept once: a table has
a row for each.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from nrdm_jax.data.errors import DataError, named
from nrdm_jax.data.latents import LatentSource
from nrdm_jax.data.sources import Source, fingerprint_of, mapped
from nrdm_jax.data.stored import once

READ = 4096  # captions at a time
ENCODED = 64  # captions at a time
FORMAT = 2  # of states on disk

# (n, t) tokens, any t up to T -> (states (n, t, E), pooled (n, E)) float32
EncodeFn = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Table(Protocol):
    """What is given with each of some captions."""

    def gather(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """(n,) rows -> n of each, by name, freshly allocated."""


class Tokens:
    """ "tokens" (n, T).

    Args:
      tokens: (captions, T) int32, see `text.tokens`.
    """

    def __init__(self, tokens: np.ndarray):
        self.tokens = tokens

    def gather(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"tokens": self.tokens[rows]}


class States:
    """ "text" (n, T, E) float32, 0 behind the text, "text_mask" (n, T), "text_pooled" (n, E).

    Args:
      states: (tokens of all captions, E), in memory or not, without padding.
      ends: (captions,): where each ends among these.
      pooled: (captions, E), in memory or not.
      length: T.
    """

    def __init__(self, states: np.ndarray, ends: np.ndarray, pooled: np.ndarray, length: int):
        self.states, self.ends, self.length = states, np.asarray(ends), length
        self.pooled = pooled
        self.starts = np.concatenate([[0], self.ends[:-1]])

    def gather(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        counts = self.ends[rows] - self.starts[rows]
        mask = np.arange(self.length)[None, :] < counts[:, None]
        text: np.ndarray = np.zeros((*mask.shape, self.states.shape[1]), np.float32)
        for one, start, count in zip(text, self.starts[rows], counts, strict=True):
            one[:count] = self.states[start : start + count]
        return {"text": text, "text_mask": mask, "text_pooled": np.asarray(self.pooled[rows])}


class Unlabelled:
    """The records of a source with the label of no class, `num_classes`."""

    def __init__(self, records: Source):
        self.records = records
        self.shape, self.dtype = records.shape, records.dtype
        self.num_classes, self.class_names = records.num_classes, records.class_names
        self.fingerprint = fingerprint_of(records.fingerprint, "no class")

    def __len__(self) -> int:
        return len(self.records)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = self.records.gather(indices)
        return batch | {"label": np.full_like(batch["label"], self.num_classes)}

    def captions(self, indices: np.ndarray) -> list[str]:
        return self.records.captions(indices)


class CaptionedSource:
    """The records of a source, and what a table says of their captions.

    Args:
      records: of any kind.
      rows: (records,): the row of each one's caption.
      table: see `Table`.
      fingerprint: of what makes the table's rows of captions.
    """

    def __init__(
        self,
        records: Source,
        rows: np.ndarray,
        table: Table,
        *,
        fingerprint: str,
    ):
        self.records, self._rows, self._table = records, rows, table
        self.shape, self.dtype = records.shape, records.dtype
        self.num_classes, self.class_names = records.num_classes, records.class_names
        self.fingerprint = fingerprint_of(records.fingerprint, fingerprint)

    def __len__(self) -> int:
        return len(self.records)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return self.records.gather(indices) | self._table.gather(self._rows[indices])

    def captions(self, indices: np.ndarray) -> list[str]:
        return self.records.captions(indices)


def plain(source: Source) -> Source:
    """The records as the data set has them, with their labels, and without what is given of their
    captions; of latents too."""
    if isinstance(source, LatentSource):
        return LatentSource(plain(source.stored), source.statistics)
    return plain(source.records) if isinstance(source, CaptionedSource | Unlabelled) else source


def different(source: Source) -> tuple[list[str], np.ndarray]:
    """(the captions of the records, each once, in order; the place of each record's among them).

    Raises:
      DataError: as `Source.captions`.
    """
    places: dict[str, int] = {}
    rows: np.ndarray = np.zeros(len(source), np.int32)
    for start in range(0, len(source), READ):
        part = np.arange(start, min(start + READ, len(source)))
        rows[part] = [places.setdefault(text, len(places)) for text in source.captions(part)]
    return list(places), rows


def encoded(
    tokens: np.ndarray,
    encode: EncodeFn,
    directory: pathlib.Path,
    key: Sequence,
) -> States:
    """The states of captions, computed once and kept under `directory`, memory-mapped from then on.

    Args:
      tokens: (captions, T), 0 behind the text.
      encode: see there.
      directory: of all that are kept.
      key: JSON values; everything that decides the states.

    Raises:
      DataError: what is kept is damaged.
    """

    def write(folder: pathlib.Path) -> None:
        counts = (tokens > 0).sum(axis=1)
        ends = np.cumsum(counts)
        states = pooled = None
        # By length, so that little padding is encoded; a multiple of 8, so that few programs are.
        order = np.argsort(counts, kind="stable")
        for first in range(0, len(order), ENCODED):
            some = order[first : first + ENCODED]
            width = min(-(-max(int(counts[some].max()), 1) // 8) * 8, tokens.shape[1])
            found, whole = encode(np.resize(tokens[some, :width], (ENCODED, width)))
            if states is None or pooled is None:
                channels = found.shape[-1]  # and no file of nothing is mapped
                states = _file(folder / "states.npy", (max(int(ends[-1]), 1), channels))
                pooled = _file(folder / "pooled.npy", (len(tokens), channels))
            for row, one in zip(some, found, strict=False):
                states[ends[row] - counts[row] : ends[row]] = one[: counts[row]]
            pooled[some] = whole[: len(some)]
        assert states is not None and pooled is not None, "no captions"
        states.flush()
        pooled.flush()
        np.save(folder / "ends.npy", ends)

    home = once(directory / fingerprint_of(FORMAT, *key), write)
    states, pooled, ends = (mapped(home / f"{name}.npy") for name in ("states", "pooled", "ends"))
    with named(str(home), " is damaged; remove it"):
        said = np.cumsum((tokens > 0).sum(axis=1))
        if not np.array_equal(ends, said) or len(pooled) != len(tokens) or len(states) < said[-1]:
            raise DataError("its states are not those of as many tokens")
    return States(states, ends, pooled, tokens.shape[1])


def _file(path: pathlib.Path, shape: tuple[int, ...]) -> np.memmap:
    return np.lib.format.open_memmap(path, "w+", np.float32, shape)
