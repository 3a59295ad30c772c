"""Language tags: what is compared of them, and which languages are written without spaces."""

from __future__ import annotations

from functools import lru_cache

PIVOT = "en"  # the language on one side of every dictionary
_WITHOUT_SPACES = frozenset({"zh", "ja", "th", "km", "lo", "my"})


@lru_cache(maxsize=1 << 12)
def primary(language: str) -> str:
    """The language of a tag without script and region: zh of zh-Hant."""
    return tag_of(language).partition("-")[0]


@lru_cache(maxsize=1 << 12)
def written_without_spaces(language: str) -> bool:
    """Whether words of ``language`` are not set off by spaces; its region and script (zh-Hant) do not matter."""
    return primary(language) in _WITHOUT_SPACES


def tag_of(language: str) -> str:
    """A language tag as it is compared: zh_Hant is zh-hant."""
    return language.replace("_", "-").lower()
