"""Clips, (N, T, H, W, 1 or 3) uint8, as moving pictures: GIF, WebP and MP4."""

import fractions
import importlib.util
import pathlib

import numpy as np

from nrdm_jax.sampling.files import tell_once, whole
from nrdm_jax.sampling.pictures import as_picture, grid

MILLISECONDS = 120  # of a frame


def sheets(clips: np.ndarray) -> np.ndarray:
    """(T, height, width, C): a grid of all clips at each of their frames."""
    return np.stack([grid(clips[:, i]) for i in range(clips.shape[1])])


def strips(stacks: np.ndarray, most: int = 8) -> np.ndarray:
    """(N, T, H, W, C) uint8 -> one picture, a row an example: up to `most` of its frames or slices,
    evenly from the first to the last."""
    places = np.linspace(0, stacks.shape[1] - 1, min(most, stacks.shape[1])).round().astype(int)
    return grid(stacks[:, places].reshape(-1, *stacks.shape[2:]), columns=len(places))


def write_gif(path: pathlib.Path, frames: np.ndarray) -> None:
    """(T, H, W, 1 or 3) uint8 -> an endless GIF, of 256 colours a frame."""
    _write_endless(path, frames, "GIF")


def write_webp(path: pathlib.Path, frames: np.ndarray) -> None:
    """(T, H, W, 1 or 3) uint8 -> an endless animated WebP of exactly these pixels."""
    _write_endless(path, frames, "WEBP", lossless=True, quality=40)  # the effort, not the loss


def _write_endless(path: pathlib.Path, frames: np.ndarray, kind: str, **options) -> None:
    first, *others = map(as_picture, frames)
    with whole(path) as partial:
        first.save(
            partial, format=kind, save_all=True, append_images=others, duration=MILLISECONDS,
            loop=0, **options,
        )  # fmt: skip


def write_mp4(path: pathlib.Path, frames: np.ndarray) -> bool:
    """(T, H, W, 1 or 3) uint8 -> an H.264 video, with white below and beside it where a side is
    odd, which H.264 cannot have; whether PyAV is there to do so (the extra `video`)."""
    if importlib.util.find_spec("av") is None:
        tell_once(
            "no MP4 of clips, only GIF and WebP: PyAV is absent; "
            "bash launch/local.sh --setup-only --extras=video"
        )
        return False
    import av

    odd = [(0, size % 2) for size in frames.shape[1:3]]
    even = np.pad(frames, [(0, 0), *odd, (0, 0)], constant_values=255)
    if even.shape[-1] == 1:
        even = even.repeat(3, axis=-1)
    with whole(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fractions.Fraction(1000, MILLISECONDS))
        stream.height, stream.width = even.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "16"}
        for frame in even:
            packets = stream.encode(
                av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")
            )
            container.mux(packets)
        container.mux(stream.encode())
    return True
