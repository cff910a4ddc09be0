"""Examples held against each other: one picture of each, side by side, with words below."""

from collections.abc import Sequence

import numpy as np

from nrdm_jax.sampling import contact_sheets, views
from nrdm_jax.sampling.writers import form_of

FRAMES = 4  # of a clip


def comparison(
    groups: Sequence[tuple[np.ndarray, Sequence[str]]], form: str = "auto"
) -> np.ndarray | None:
    """One RGB picture (H, W, 3): the i-th of each group, then the next of each.

    Args:
      groups: examples (n, *S, C) uint8 with n titles each, n the same.
      form: see `writers.form_of`; None comes back for arrays, which cannot be looked at.
    """
    form = form_of(groups[0][0].shape[1:], form)
    if form == "arrays":
        return None
    shown, titles = [], []
    for several in zip(*(zip(*group, strict=True) for group in groups), strict=True):
        for example, title in several:
            shown.append(_picture(example, form))
            titles.append(title)
    return contact_sheets.contact_sheet(np.stack(shown), tuple(titles), columns_of=len(groups))


def _picture(example: np.ndarray, form: str) -> np.ndarray:
    """(*S, C) uint8 -> (H, W, 1 or 3): frames from the first to the last, the middle slices across
    each axis, a shape as it is rendered."""
    if form == "pictures":
        return example
    if form == "clips":
        places = np.linspace(0, len(example) - 1, min(FRAMES, len(example))).round().astype(int)
        return np.concatenate(list(example[places]), axis=1)
    if form == "shapes":
        return views.rendered(example[..., 0] / np.float32(127.5) - 1, 0.0)
    depth, height, width, _ = example.shape
    middle = [
        example[depth // 2, ::-1],
        example[::-1, height // 2],
        example[::-1, :, width // 2],
    ]
    tallest = max(len(slice_) for slice_ in middle)
    return np.concatenate(
        [np.pad(s, ((0, tallest - len(s)), (0, 2), (0, 0))) for s in middle], axis=1
    )
