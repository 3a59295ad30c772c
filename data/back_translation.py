"""Back-translation masked language modelling (BTMLM; ERNIE-M, Ouyang et al., 2021; US20220171941A1).

    first pass    [<s> x </s> | placeholders]            the model writes K tokens of another language, all at once
    second pass   [<s> masked x </s> </s> pseudo </s>]   masked tokens of x are predicted from both

The layout is that of a pair of translations, the place of the pseudo tokens' first ``</s>`` included: so the first pass
asks for what CAMLM has taught, and the second is TLM with a translation of the model's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field, model_validator

from data.masking import corrupt
from data.packing import FIRST_POSITION, Document, Example
from data.recipe import Section
from data.task import SPECIALS, Draw, Made, Material, TaskConfig, TextSegment, wrapped


class DecodingConfig(Section):
    """How pseudo tokens are chosen: the best id, or one drawn from the ``top_k`` best."""

    top_k: int = Field(1, ge=1)
    temperature: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _has_effect(self) -> DecodingConfig:
        if self.top_k == 1 and self.temperature != 1:
            raise ValueError(
                "temperature has no effect on the best id: set top_k to 2 or more, or leave it out"
            )
        return self


class GateConfig(Section):
    """What opens the task: CAMLM's accuracy at the last evaluation, or a number of tokens, whichever comes first.

    Until then its budget is spent on MMLM. Without either it is open from the start.
    """

    camlm_accuracy: float | None = Field(None, gt=0, lt=1)
    tokens: int | None = Field(None, ge=1, lt=2**62)


class BackTranslationConfig(TaskConfig):
    """BTMLM: the masked part of x, and how many pseudo tokens stand beside it."""

    mask_rate: float = Field(0.15, gt=0, lt=1)
    pseudo_ratio: float = Field(0.5, gt=0, le=4)  # pseudo tokens for each token of x, at least one in all
    decode: DecodingConfig = DecodingConfig()
    restrict_to_language: bool = False  # only ids that occur in the training texts of the language
    gate: GateConfig = GateConfig()


def pseudo_count(lengths: np.ndarray, ratio: float) -> np.ndarray:
    """K = max(1, round(ratio * n)) for texts of ``lengths`` (k,) tokens."""
    return np.maximum(1, np.rint(ratio * lengths)).astype(np.int64)


def fitted_length(lengths: np.ndarray, ratio: float, maximum: int) -> np.ndarray:
    """What is kept of texts of ``lengths`` (k,) tokens, so that they fit into ``maximum`` with their pseudo tokens."""
    possible = np.arange(maximum)
    longest = possible[possible + pseudo_count(possible, ratio) + 2 * SPECIALS <= maximum][-1]
    return np.minimum(lengths, longest)


def room_of_text_and_pseudo(
    lengths: Sequence[np.ndarray], maximum: int, _: Sequence[str], config: TaskConfig
) -> np.ndarray:
    """Tokens of the second pass's document; the first pass is not counted among the tokens of a step."""
    assert isinstance(config, BackTranslationConfig)
    kept = fitted_length(lengths[0], config.pseudo_ratio, maximum)
    return kept + pseudo_count(kept, config.pseudo_ratio) + 2 * SPECIALS


def make_btmlm(segments: Sequence[TextSegment], draw: Draw, material: Material, config: TaskConfig) -> Made:
    """[x pseudo | -]: masked tokens of x are predicted from x and from tokens that the model wrote itself.

    Pseudo tokens are never masked and never predicted. The language that they are written in is drawn from those
    that have bilingual text, x's own excluded.
    """
    assert isinstance(config, BackTranslationConfig)
    (segment,) = segments
    tokenizer = material.tokenizer
    count = int(fitted_length(np.array(len(segment.ids)), config.pseudo_ratio, material.maximum_tokens))
    pseudo = int(pseudo_count(np.array(count), config.pseudo_ratio))
    target = target_language(segment.language, material, draw.random("target"))
    if target is None:
        return Made(None)
    ids = segment.ids[:count]
    x = wrapped(ids, tokenizer)
    positions = np.arange(len(x)) + FIRST_POSITION
    places = np.arange(pseudo) + FIRST_POSITION + len(x) + 1  # after the </s> that begins the other side
    asking = asking_document(x, positions, segment.language, places, target, tokenizer.mask_id, draw)

    masked = corrupt(ids, config.mask_rate, tokenizer.mask_id, draw.random("mask"))
    y = wrapped(np.full(pseudo, tokenizer.mask_id), tokenizer)
    y[0] = tokenizer.eos_id
    shown = np.concatenate([wrapped(masked.shown, tokenizer), y])
    document = Document(
        shown,
        np.arange(len(shown)) + FIRST_POSITION,
        np.repeat([segment.language, target], [len(x), len(y)]),
        len(shown),
        masked.predicted + 1,
        masked.targets,
        slots=np.arange(pseudo) + len(x) + 1,
    )
    return Made(Example(draw.stream, [document], generation=[asking]))


def target_language(source: int, material: Material, random: np.random.Generator) -> int | None:
    """A language to write in, not ``source``; None if no other one has bilingual text."""
    shares = material.bilingual.copy()
    shares[source] = 0.0
    if not shares.sum() > 0:
        return None
    reached = shares.cumsum() / shares.sum()
    return int(np.searchsorted(reached, random.random(), side="right"))


def asking_document(
    context: np.ndarray,
    positions: np.ndarray,
    language: int,
    places: np.ndarray,
    target: int,
    mask_id: int,
    draw: Draw,
) -> Document:
    """[context | placeholders]: a document at whose readers the model writes tokens of language ``target``.

    ``context`` (n,) are ids at ``positions`` (n,), in ``language``; ``places`` (k,) are the placeholders' positions.
    Its language is always told: nothing else says in which one to write.
    """
    count = len(places)
    return Document(
        np.concatenate([context, np.full(count, mask_id)]).astype(np.int32),
        np.concatenate([positions, places]),
        np.repeat([language, target], [len(context), count]),
        len(context),
        len(context) + np.arange(count),
        np.zeros(count, dtype=np.int64),  # nothing is right or wrong here
        draws=draw.random("decode").random(count),
        language_shown=True,
    )
