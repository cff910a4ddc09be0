"""Hostile pictures, clips and folders of them, as `nrdm data prepare` reads them."""

import json
import os
import pathlib
import struct
import zlib
from collections.abc import Callable, Iterator

from PIL import Image

from benchmarks import valid_files
from benchmarks.fault_rows import Answer, Row
from benchmarks.hostile_reading import BAD_DATA, EXECUTED, prepare, row

Write = Callable[[pathlib.Path], object]


def png(width: int, height: int, data: bytes = b"", frames: int = 0) -> bytes:
    """Of RGB; `frames`: that its header says there are."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    found = b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    )
    if frames:
        found += chunk(b"acTL", struct.pack(">II", frames, 0))
    return found + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def jpeg(width: int, height: int, scans: int) -> bytes:
    """Grey and progressive, of one scan with a code and others without any data."""

    def segment(kind: int, *content: int) -> bytes:
        return struct.pack(">BBH", 0xFF, kind, 2 + len(content)) + bytes(content)

    size = struct.pack(">HH", height, width)
    codes = (segment(0xC4, kind, 1, *[0] * 15, 0) for kind in (0x00, 0x10))
    return b"".join((
        b"\xff\xd8", segment(0xDB, 0, *[1] * 64), segment(0xC2, 8, *size, 1, 1, 0x11, 0), *codes,
        segment(0xDA, 1, 1, 0, 0, 0, 0), segment(0xDA, 1, 1, 0, 1, 63, 0) * scans, b"\xff\xd9",
    ))  # fmt: skip


def webp(width: int, height: int) -> bytes:
    """Of a canvas without a picture."""
    sizes = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<IBxxx", 10, 2) + sizes
    return b"RIFF" + struct.pack("<I", len(body)) + body


def eps(command: str) -> bytes:
    return f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(%pipe%{command}) (w) file\n".encode()


def cut(write: Write, share: float) -> Write:
    """The first part of what `write` writes."""

    def written(path: pathlib.Path) -> None:
        write(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return written


def crowded(path: pathlib.Path) -> None:
    """An MP4 that says it is of 10^7 samples of one byte, in tables of the length they had."""
    valid_files.video(path)
    content, count = bytearray(path.read_bytes()), 10**7
    struct.pack_into(">II", content, content.index(b"stsz") + 8, 1, count)
    struct.pack_into(">II", content, content.index(b"stts") + 12, count, 1)
    chunks = content.index(b"stsc") + 8
    for number in range(*struct.unpack_from(">I", content, chunks)):
        struct.pack_into(">III", content, chunks + 4 + 12 * number, number + 1, count, 1)
    path.write_bytes(content)


def holding(
    name: str, write: Write, suffix: str = ".png"
) -> Callable[[pathlib.Path], pathlib.Path]:
    """-> a folder with a file that `write` writes, between two that are as they should be."""

    def make(inside: pathlib.Path) -> pathlib.Path:
        folder = inside / "folder"
        folder.mkdir()
        for sound in ("0", "2"):
            kind = valid_files.picture if suffix == ".png" else valid_files.animation
            kind(folder / f"{sound}{suffix}")
        write(folder / name)
        return folder

    return make


def pictures(folder: pathlib.Path) -> Answer:
    return prepare(f"image_folder:{folder}", folder.parent, "8,8,3")


def clips(folder: pathlib.Path) -> Answer:
    return prepare(f"video_folder:{folder}", folder.parent, "2,8,8,3")


def _pictures() -> Iterator[Row]:
    def of(name: str, content: bytes) -> Callable[[pathlib.Path], pathlib.Path]:
        return holding(name, lambda path: path.write_bytes(content))

    def command(path: pathlib.Path) -> None:
        path.write_bytes(eps(f"touch {path.parents[2] / EXECUTED}"))

    def ghost(path: pathlib.Path) -> None:
        valid_files.picture(path)
        content = bytearray(path.read_bytes())
        content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
        path.write_bytes(content)

    damaged = "1.png: cannot be decoded"
    for name, make, says in (
        ("PNG of 60,000 x 60,000", of("1.png", png(60_000, 60_000)), "exceeds limit of"),
        ("PNG of 12,000 x 12,000", of("1.png", png(12_000, 12_000)), "is of 12000 x 12000 pixels"),
        ("PNG of 0 x 0", of("1.png", png(0, 0)), damaged),
        ("PNG of fewer rows than it says", of("1.png", png(64, 64, bytes(99))), damaged),
        ("EPS named .png, with a program", holding("1.png", command), damaged),
        ("PNG that ends in zeros", holding("1.png", ghost), damaged),
        ("WebP of 16,777,216 x 16", of("1.webp", webp(2**24, 16)), "is of 16777216 x 16 pixels"),
        ("JPEG of 10^4 scans without data", of("1.jpg", jpeg(2048, 2048, 10**4)),
         "1.jpg: is a JPEG of more than 100 scans"),
        ("JPEG that is cut", holding("1.jpg", cut(valid_files.picture, 0.5)), "1.jpg: cannot be"),
        ("TIFF that is cut", holding("1.tif", cut(valid_files.picture, 0.5)), "1.tif: cannot be"),
        ("WebP that is cut", holding("1.webp", cut(valid_files.picture, 0.5)), "1.webp: cannot be"),
        ("PPM of 2^31 columns", of("1.ppm", b"P6 2147483647 1 255\n"), "1.ppm: cannot be decoded"),
    ):  # fmt: skip
        yield row(name, BAD_DATA, says, make, pictures)


def _clips() -> Iterator[Row]:
    def of(name: str, content: bytes) -> Callable[[pathlib.Path], pathlib.Path]:
        return holding(name, lambda path: path.write_bytes(content), ".gif")

    screen = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0xF0, 0, 0) + bytes(6)
    frames = "1.apng: cannot be decoded"
    for name, make, says in (
        ("APNG that claims 10^6 frames", of("1.apng", png(8, 8, bytes(25 * 8), 10**6)), frames),
        ("GIF of 65,535 x 65,535", of("1.gif", screen + b";"), "1.gif: cannot be decoded"),
        ("MP4 that is cut", holding("1.mp4", cut(valid_files.video, 0.6), ".gif"), "1.mp4: cannot"),
        ("MP4 of 10^7 samples", holding("1.mp4", crowded, ".gif"), "bytes hold 10,000,000 samples"),
        ("MKV that is cut", holding("1.mkv", cut(valid_files.video, 0.1), ".gif"), "1.mkv: cannot"),
        ("a list of files named .mp4", of("1.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n"),
         "1.mp4: cannot be decoded"),
        ("a playlist named .mp4", of("1.mp4", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n"),
         "1.mp4: cannot be decoded"),
    ):  # fmt: skip
        yield row(name, BAD_DATA, says, make, clips)


def _folders() -> Iterator[Row]:
    def link(path: pathlib.Path) -> None:
        outside = path.parents[2] / "outside.png"
        Image.new("RGB", (9, 9)).save(outside)
        path.symlink_to(outside)

    def away(path: pathlib.Path) -> None:
        (path.parents[2] / "outside").mkdir()
        path.symlink_to(path.parents[2] / "outside")

    def captions(line: object, name: str = "captions.jsonl") -> Callable:
        text = line if isinstance(line, str) else json.dumps(line)
        return holding(name, lambda path: path.write_text(text + "\n"))

    def text(content: bytes) -> Callable:
        return holding("0.txt", lambda path: path.write_bytes(content))

    def latin(path: pathlib.Path) -> None:
        with open(os.fsencode(path.parent) + b"/\xe4.png", "wb"):
            pass

    out = "points out of the folder"
    for name, make, says in (
        ("a link out of the folder", holding("1.png", link), "is a link out of"),
        ("a folder that links out of it", holding("more", away), "is a link out of"),
        ("a pipe in the folder", holding("1.png", os.mkfifo), "is no regular file"),
        ("a name that is no UTF-8", holding("1.png", latin), "is no UTF-8; rename the file"),
        ("captions of ../", captions({"file_name": "../../x.png", "text": "a"}), out),
        ("captions of /etc", captions({"file_name": "/etc/x.png", "text": "a"}), out),
        ("captions without a name", captions({"text": "a"}), "captions.jsonl, line 1: is not"),
        ("captions of a list", captions('["a"]'), "captions.jsonl, line 1: is not"),
        ("captions nested without end", captions("[" * 10**5), "is nested too deeply"),
        ("captions of a line of 2 MiB", captions(" " * 2**21), "has more than 1,048,576 bytes"),
        ("a caption of 2 MiB", text(b" " * 2**21), "more than 1,048,576"),
        ("a caption that is no UTF-8", text(b"\xff\xfe"), "is no text in UTF-8"),
        ("captions of half a character", captions(r'{"file_name": "0.png", "text": "\ud800"}'),
         "captions.jsonl, line 1: is not"),
    ):  # fmt: skip
        yield row(name, BAD_DATA, says, make, pictures)


def rows() -> Iterator[Row]:
    yield from _pictures()
    yield from _clips()
    yield from _folders()
