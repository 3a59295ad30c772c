"""In which language a text is: naive Bayes over its bytes, in 97 languages (the door of py3langid)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from data.cleaning.config import LanguageRule
from data.lengths import letters_of
from data.recipe import UserError

FORMER = {
    "iw": "he",
    "in": "id",
    "ji": "yi",
    "jw": "jv",
    "nb": "no",
    "nn": "no",
}  # codes that mean the same here


@lru_cache(maxsize=1)
def identifier() -> Any:
    """py3langid's, loaded once a process; UserError if it is not installed."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise UserError(
            "cleaning.language needs the package py3langid: pip install py3langid, or leave the key out"
        ) from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def found_language(language: str, text: str, rule: LanguageRule) -> str | None:
    """The likeliest language of a text where its own is too unlikely, "" where it is not, None if there is no saying.

    There is none for short texts and for languages that the identifier does not know.
    """
    own = language.replace("_", "-").split("-")[0].lower()
    own = FORMER.get(own, own)
    known = identifier()
    if own not in known.labels or letters_of(text) < rule.letters:
        return None
    ranked = known.rank(text)
    likely = dict(ranked)
    share = max(likely[own], *(likely.get(code, 0.0) for code, same in FORMER.items() if same == own), 0.0)
    return "" if share >= rule.probability else str(ranked[0][0])
