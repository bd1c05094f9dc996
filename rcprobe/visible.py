"""Text from outside, made safe to look at: what can't be seen, or turns its neighbours round, is spelt out."""

import unicodedata

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # parts of Persian words and of joined emoji


def visible(text: object) -> str:
    """The text with control, bidirectional and private characters and lone surrogates written as ``⟨U+202E⟩``.

    A joiner behind a character that isn't ASCII stays: it belongs to a word or an emoji.
    """
    said = str(text)
    if said.isascii() and said.isprintable():
        return said
    return "".join(_shown(character, said[i - 1] if i else " ") for i, character in enumerate(said))


def _shown(character: str, before: str) -> str:
    if unicodedata.category(character) not in _HIDDEN:
        return character
    if character in _JOINERS and not before.isascii() and unicodedata.category(before) not in _HIDDEN:
        return character
    return f"⟨U+{ord(character):04X}⟩"


def shortened(text: object, limit: int) -> str:
    """``visible``, cut to about ``limit`` characters with an ellipsis."""
    said = str(text)
    return visible(said) if len(said) <= limit else visible(said[: limit - 1]) + "…"
