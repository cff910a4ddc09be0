import errno
import io
import struct

import numpy as np
import pytest
from PIL import Image

from nrdm_jax.data import clips
from nrdm_jax.data.errors import DataError


@pytest.mark.parametrize(
    ("count", "stride", "hop", "starts"),
    [(4, 1, None, [0, 4]), (3, 2, None, [0]), (4, 2, None, [0]), (4, 1, 1, range(7)),
     (3, 3, 2, [0, 2]), (2, 1, 5, [0, 5]), (10, 1, None, [0]), (11, 1, None, [])],
)  # fmt: skip
def test_windows_begin_every_hop_and_are_whole(count, stride, hop, starts):
    frames = [np.full((2, 2, 1), i) for i in range(10)]
    found = [clip[:, 0, 0, 0].tolist() for clip in clips.windows(frames, count, stride, hop)]
    assert found == [[s + stride * i for i in range(count)] for s in starts]


def stills(levels, size=(24, 16)):
    return [Image.new("L", size, int(level)) for level in levels]


def save(path, frames, **options):
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50, **options)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.apng"])
def test_animated_pictures_are_read_in_order(tmp_path, name):
    levels = np.arange(0, 240, 30)
    options = {"lossless": True} if name.endswith("webp") else {}
    format = "PNG" if name.endswith("apng") else None
    frames = [picture.convert("RGB") for picture in stills(levels)]
    save(tmp_path / name, frames, format=format, **options)
    found = np.stack(list(clips.read_frames(tmp_path / name, (8, 8, 1))))
    assert found.shape == (8, 8, 8, 1) and found.dtype == np.uint8
    np.testing.assert_allclose(found.mean(axis=(1, 2, 3)), levels, atol=1)


def test_what_is_clear_in_a_frame_is_white(tmp_path):
    frames = [Image.new("RGBA", (8, 8), (0, 0, 0, alpha)) for alpha in (255, 0)]
    save(tmp_path / "a.webp", frames, lossless=True)
    black, white = clips.read_frames(tmp_path / "a.webp", (4, 4, 3))
    assert black.max() == 0 and white.min() == 255


def test_a_gif_of_one_frame_has_one(tmp_path):
    stills([90])[0].save(tmp_path / "a.gif")
    (frame,) = clips.read_frames(tmp_path / "a.gif", (8, 8, 3))
    assert frame.shape == (8, 8, 3)


def test_several_pictures_of_jpeg_are_no_animation(tmp_path):
    save(tmp_path / "a.gif", stills([1, 2]), format="MPO")
    with pytest.raises(DataError, match="a.gif: is of several pictures of JPEG"):
        list(clips.read_frames(tmp_path / "a.gif", (8, 8, 3)))


def encode(path, levels, size=(64, 48)):
    av = pytest.importorskip("av", reason="needs the extra `video`")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4" if path.suffix == ".mp4" else "libvpx-vp9", rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for picture in stills(levels, size):
            container.mux(stream.encode(av.VideoFrame.from_image(picture.convert("RGB"))))
        container.mux(stream.encode())


@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
def test_encoded_videos_are_read_in_order_and_to_the_end(tmp_path, name):
    levels = np.arange(40, 220, 12)
    encode(tmp_path / name, levels)
    found = np.stack(list(clips.read_frames(tmp_path / name, (8, 8, 3))))
    np.testing.assert_allclose(found.mean(axis=(1, 2, 3)), levels, atol=6)


def test_a_video_is_shown_as_its_camera_was_held(tmp_path):
    av = pytest.importorskip("av", reason="needs the extra `video`")
    picture = Image.new("RGB", (64, 32), (255, 0, 0))
    picture.paste((0, 0, 255), (32, 0, 64, 32))
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    # ISO 14496-12, 8.3.2: the matrix of the track's header; this one turns clockwise.
    place = content.index(b"tkhd") + 44
    content[place : place + 36] = struct.pack(
        ">9i", 0, 2**16, 0, -(2**16), 0, 0, 32 * 2**16, 0, 2**30
    )
    path.write_bytes(content)
    for frame in clips.read_frames(path, (16, 8, 3)):
        top, bottom = frame[1, 4].astype(int), frame[-2, 4].astype(int)
        assert top[0] > 180 > 80 > top[2] and bottom[2] > 180 > 80 > bottom[0]


def test_files_that_cannot_be_read_are_named(tmp_path):
    encode(tmp_path / "a.mp4", np.arange(0, 200, 2))
    for name in ("b.mp4", "b.gif"):
        (tmp_path / name).write_bytes((tmp_path / "a.mp4").read_bytes()[:700])
        with pytest.raises(DataError, match=rf"{name}: cannot be decoded"):
            list(clips.read_frames(tmp_path / name, (8, 8, 3)))


@pytest.mark.parametrize("name", ["a.gif", "a.mp4"])
@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "many"), OSError(errno.EIO, "disk")])
def test_failures_of_the_machine_are_not_the_files(tmp_path, monkeypatch, name, error):
    if name == "a.mp4":
        encode(tmp_path / name, np.arange(0, 200, 20))
    else:
        save(tmp_path / name, stills([1, 2]))

    class Failing(io.FileIO):
        def readinto(self, buffer):
            raise error

        def read(self, size=-1):
            raise error

    def fail(path, *args, **kwargs):
        if error.errno == errno.EMFILE:
            raise error
        opened = Failing(path)
        opened.length = 1000
        return opened

    monkeypatch.setattr(clips, "BoundedFile", fail)
    with pytest.raises(OSError) as caught:
        list(clips.read_frames(tmp_path / name, (8, 8, 1)))
    assert caught.value is error


def test_without_pyav_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(clips.importlib.util, "find_spec", lambda name: None)
    clips.check([tmp_path / "a.gif"])
    with pytest.raises(ValueError, match=r"a.MP4 is read by PyAV.*--extras=video"):
        clips.check([tmp_path / "a.gif", tmp_path / "a.MP4"])
