"""Replies against keys by their letters alone: option letters, exact match, names in captions (step 7). Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence


def released_letter(reply: str, letters: Sequence[str]) -> str:
    """The option that the released rule reads from a reply: it begins with a letter, else contains ``a.`` or ``a)``.

    "Actually, it is B" is therefore A, as in the published numbers.

    Returns:
        One of the letters, upper case, or "".
    """
    text = reply.strip().lower()
    lower = sorted((letter.lower() for letter in letters), key=len, reverse=True)  # "12" is not "1"
    for letter in lower:
        if text.startswith(letter):
            return letter.upper()
    for letter in lower:
        if f"{letter}." in text or f"{letter})" in text:
            return letter.upper()
    return ""


def strict_letter(reply: str, options: Mapping[str, str]) -> str:
    """The one option that a reply names beyond doubt: it is the option's text, or it holds a letter standing alone, or
    else the option's text.

    A lower-case letter counts only as the whole reply or before ``.``, ``)`` or ``:``; "A" before a lower-case word
    is an article, unless that word is "is", "or" or "and".

    Returns:
        One of the letters, upper case, or "" where the reply names none or several.
    """
    letters = [letter.upper() for letter in options]
    whole = [letter for letter, text in zip(letters, options.values(), strict=True) if exact_match(reply, text)]
    any_letter = "|".join(map(re.escape, letters))
    labelled = re.match(rf"\s*({any_letter})\s*([.):]|$)", reply, re.IGNORECASE)  # no article, as in "A. dog"
    if len(whole) == 1 and not labelled:
        return whole[0]
    text = re.sub(r"\bA(?=\s+(?!(?:is|or|and)\b)[a-z])", "", reply)  # the article
    named = set(re.findall(rf"\b({any_letter})\b(?!['\u2019])", text))
    named |= {letter.upper() for letter in re.findall(rf"\b({any_letter.lower()})[.):]", reply)}
    named |= {reply.strip().upper()} & set(letters)
    if not named:
        words = f" {_normalised(reply)} "
        named = {letter.upper() for letter, text in options.items() if text and f" {_normalised(text)} " in words}
    return named.pop() if len(named) == 1 else ""


def exact_match(reply: str, key: str) -> bool:
    """Whether two texts are the same but for case, punctuation, articles and spaces; signs alone must be the same."""
    return _normalised(reply) == _normalised(key)


def _normalised(text: str) -> str:
    text = re.sub(r"['\u2018\u2019]", "", text.casefold())
    words = re.findall(r"(?<!\w)[-\u2212]\d+|\w+", text)  # -5 is not 5
    if not words:
        return text.strip()
    rest = [word.replace("\u2212", "-") for word in words if word not in ("a", "an", "the")]
    return " ".join(rest or words)  # "A" may be an answer


def named_in(caption: str, names: Sequence[str]) -> list[str]:
    """The names that appear in a caption as whole words; case, apostrophes and what parts the words do not matter.

    Where one name is part of another, "Casey" of "Casey's boosted board", it is looked for beside the longer one.
    """
    rest = unicodedata.normalize("NFC", caption).casefold()
    found = []
    for name in sorted(names, key=len, reverse=True):
        rest, times = re.subn(_name_pattern(name), "\0", rest)
        if times:
            found.append(name)
    return found


def _name_pattern(name: str) -> str:
    name = re.sub(r"['\u2018\u2019]", "", unicodedata.normalize("NFC", name).casefold())
    words = re.findall(r"[^\W_]+", name)
    if not words:  # signs alone
        return re.escape(name)
    pattern = r"[\W_]+".join("['\u2018\u2019]?".join(map(re.escape, word)) for word in words)
    # scripts without capitals may put no space between words
    before, after = (sign.isascii() or sign.upper() != sign for sign in (words[0][0], words[-1][-1]))
    return (r"(?<![^\W_])" if before else "") + pattern + (r"(?![^\W_])" if after else "")
