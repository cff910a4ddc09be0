"""The vocabularies of published encoders are within the bound, and the library keeps to what the
table says of its parts."""

import base64
import json

import pytest

from nrdm_jax.text import growth

# SentencePiece's longest text for a character has 33 bytes, as NFKC's.
TABLE = base64.b64encode((4).to_bytes(4, "little") + bytes(4) + b"b\0" + b"a" * 33 + b"\0").decode()
PRECOMPILED = {"type": "Precompiled", "precompiled_charsmap": TABLE}
SPACES = {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}
QUOTES = {"type": "Replace", "pattern": {"String": "``"}, "content": '"'}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
SPLIT = {"type": "Split", "pattern": {"Regex": "\\w+"}, "behavior": "Removed", "invert": True}


def of(name, *parts):
    return {"type": "Sequence", name: list(parts)}


def kinds(*names):
    return [{"type": name} for name in names]


@pytest.mark.parametrize(
    "normalizer, pre_tokenizer, expected",
    [
        (None, None, 1),
        (*kinds("BertNormalizer", "BertPreTokenizer"), 12),
        (  # T5
            PRECOMPILED,
            of("pretokenizers", *kinds("WhitespaceSplit"), METASPACE),
            33 * 5,
        ),
        (  # CLIP
            of("normalizers", *kinds("NFC"), SPACES, *kinds("Lowercase")),
            of("pretokenizers", SPLIT, *kinds("ByteLevel")),
            3 * 2 * 2 * 4,
        ),
        (  # ALBERT
            of("normalizers", QUOTES, *kinds("NFKD", "StripAccents", "Lowercase"), PRECOMPILED),
            METASPACE,
            11 * 2 * 33 * 5,
        ),
        ({"type": "Prepend", "prepend": "▁"}, None, 4),
    ],
)
def test_published_vocabularies_are_within_the_bound(
    monkeypatch, normalizer, pre_tokenizer, expected
):
    vocabulary = {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
    growth.check_growth(vocabulary)
    monkeypatch.setattr(growth, "MOST_GROWTH", expected - 1)
    with pytest.raises(ValueError, match=f"up to {expected:,} times as long"):
        growth.check_growth(vocabulary)


@pytest.mark.parametrize("part", [{"type": "Other"}, {"normalizers": []}, {"type": []}, "Strip", 3])
def test_what_is_not_known_is_refused(part):
    with pytest.raises(ValueError, match="is not known of"):
        growth.check_growth({"pre_tokenizer": of("pretokenizers", part)})


@pytest.mark.parametrize("kind", ["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "BertNormalizer",
                                  "ByteLevel", "Nmt", "Strip", "StripAccents"])  # fmt: skip
def test_no_character_becomes_longer_than_the_table_says(kind):
    library = pytest.importorskip("tokenizers", reason="the extra text is not installed")
    part = getattr(library.normalizers, kind)()
    vocabulary = {"normalizer": json.loads(part.__getstate__())}
    most = growth._growth(vocabulary["normalizer"])
    # With the longest there are: a musical sign (NFC), a ligature (NFKC), a letter (lower case).
    for character in (
        *map(chr, range(1, 0x3000)),
        "\U0001d160",
        "\ufdfa",
        "\u023a",
        "\uac01",
        "漢",
    ):
        longer = part.normalize_str(character)
        assert len(longer.encode()) <= most * len(character.encode()), character
