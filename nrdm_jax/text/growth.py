"""How many times as long a tokenizer.json makes a text, in bytes, before it looks for words.

Each of its parts may only double a text, and a few lines have forty of them.
"""

import base64
import math
import re
from typing import Any

MOST_GROWTH = 2**16
# Of the parts that change a text in ways of their own. Unicode's normal forms: its largest factors
# in UTF-8 (unicode.org/faq/normalization); BERT's has NFD, lower case and spaces around characters.
_CHANGES = {
    "NFC": 3, "NFD": 3, "NFKC": 11, "NFKD": 11, "Lowercase": 2, "BertNormalizer": 12,
    "ByteLevel": 4,  # two bytes for one, and for a space before it
    "Metaspace": 5,  # four bytes for a space, and four before a text
}  # fmt: skip
_KEEPS = (
    "BertPreTokenizer", "CharDelimiterSplit", "Digits", "FixedLength", "Nmt", "Punctuation",
    "Split", "Strip", "StripAccents", "UnicodeScripts", "Whitespace", "WhitespaceSplit",
)  # fmt: skip


def check_growth(vocabulary: dict[str, Any]) -> None:
    """Args:
      vocabulary: what a tokenizer.json holds.

    Raises:
      ValueError: its normalizer and what comes after it make a text over `MOST_GROWTH` times as
        long, or have a part of which that is not known.
    """
    # Together: the second is given what the first has made.
    growth = _growth(vocabulary.get("normalizer")) * _growth(vocabulary.get("pre_tokenizer"))
    if growth > MOST_GROWTH:
        raise ValueError(
            f"it makes a text up to {growth:,.0f} times as long; it may make it {MOST_GROWTH:,}"
        )


def _growth(part: dict[str, Any] | None) -> float:
    match part:
        case None:
            return 1.0
        case {"type": "Sequence"}:
            parts = (*part.get("normalizers", ()), *part.get("pretokenizers", ()))
            return math.prod(map(_growth, parts), start=1.0)
        case {"type": "Replace", "pattern": pattern, "content": content}:
            # A regular expression may fit between any two.
            replaced, long = len(pattern.get("String", "").encode()), len(content.encode())
            return max(long / replaced, 1.0) if replaced else 1.0 + long
        case {"type": "Prepend", "prepend": text}:
            return 1.0 + len(text.encode())
        case {"type": "Precompiled", "precompiled_charsmap": table}:
            return _longest_text(base64.b64decode(table))
        case {"type": str(kind)} if kind in _CHANGES or kind in _KEEPS:
            return float(_CHANGES.get(kind, 1))
    name = str(part.get("type") if isinstance(part, dict) else part)
    raise ValueError(f"how much longer a text is made is not known of {name[:200]!r}")


def _longest_text(table: bytes) -> float:
    """Of those that SentencePiece's table has for a character: behind a trie, whose size comes
    first, they end with a byte of zero each."""
    first = 4 + int.from_bytes(table[:4], "little")
    return max(
        (float(len(text[0])) for text in re.finditer(rb"[^\0]+", table[first:])), default=1.0
    )
