"""Mixed-language alignment: a text and its mixed-language form are compared (US20220019743A1).

generators, drawn by weight ──▶ the first that can give something ──▶ (mixed, original), (original, mixed)
                                                                      or (mixed, mixed')
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from pydantic import Field, model_validator

from data.back_translation import GateConfig, asking_document, target_language
from data.keys import hashed, key
from data.lexicon import PIVOT, Lexicon, written_without_spaces
from data.mixing import MixedText, Mixture, mix, mix_sentences
from data.mixing_spans import choose_spans
from data.packing import FIRST_POSITION, Document, Example
from data.recipe import Section
from data.task import (
    SPECIALS,
    Draw,
    Made,
    Material,
    TaskConfig,
    TextSegment,
    context_document,
    room_of_text,
    wrapped,
)

# Room for a mixed text, times the tokens of its original: translations are cut into more pieces than the words
# that they replace. Measured on the demo, so that about 3 texts in 100 are cut in every language: most where a
# word is one character or two, and in the language that has the longest dictionaries.
_MIXED_GROWTH = 1.25
_MIXED_GROWTH_OF_PIVOT = 1.4
_MIXED_GROWTH_WITHOUT_SPACES = 2.0
_MIXED_FURTHER = 5  # tokens; one word more or less tells in a short text


PSEUDO_TOKENS = "mixed_alignment.pseudo_tokens"  # the name of the generator's gate


class GeneratorsConfig(Section):
    """How often each generator is drawn, as a ratio; one that is left out is off."""

    dictionary: float = Field(0.0, ge=0)
    phrase: float = Field(0.0, ge=0)
    sentence: float = Field(0.0, ge=0)
    pseudo_tokens: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _some_are_on(self) -> GeneratorsConfig:
        if not self.weights():
            raise ValueError(f"give at least one of {', '.join(type(self).model_fields)} a weight")
        return self

    def weights(self) -> dict[str, float]:
        """Name -> weight of those that are on."""
        return {name: weight for name, weight in self.model_dump().items() if weight > 0}


class PseudoTokensConfig(Section):
    """When the model begins to write spans; until the gate is open the other generators are drawn."""

    gate: GateConfig = GateConfig()


class MixedAlignmentConfig(TaskConfig):
    """Mixed-language alignment: which generators mix, and how much of a text they replace.

    A record for which the drawn generator can give nothing goes to the next of the others, in an order drawn by
    their weights; one for which none can give anything is rejected.
    """

    generators: GeneratorsConfig = GeneratorsConfig(dictionary=1.0)
    replacement_rate: float = Field(0.7, gt=0, le=1)  # of the words, or phrases, that have translations
    span_rate: float = Field(0.5, gt=0, lt=1)  # of the tokens, by pseudo tokens
    both_mixed: float = Field(0.0, ge=0, le=1)  # the part of the pairs that compare two mixed forms of a text
    pseudo_tokens: PseudoTokensConfig = PseudoTokensConfig()

    @model_validator(mode="after")
    def _gate_has_effect(self) -> MixedAlignmentConfig:
        gated = self.pseudo_tokens.gate != GateConfig()
        if gated and not self.generates:
            raise ValueError(
                "pseudo_tokens.gate has no effect: the generator is off. Give generators.pseudo_tokens a weight, or"
                " leave the gate out"
            )
        if gated and len(self.generators.weights()) == 1:
            raise ValueError(
                "pseudo_tokens.gate: until it opens another generator has to mix, and none is on. Give one under"
                " generators a weight, or leave the gate out"
            )
        return self

    @property
    def generates(self) -> bool:
        """Whether the model writes tokens for it."""
        return self.generators.pseudo_tokens > 0

    def lacks(self, lexicon: Lexicon | None) -> str | None:
        """A generator that reads word lists needs one that holds what it looks for."""
        on = self.generators.weights()
        if lexicon is None and ("dictionary" in on or "phrase" in on):
            return "needs word translations: name a file under 'lexicons', or leave it out."
        if lexicon is not None and "phrase" in on and not lexicon.has_phrases:
            return (
                "has the generator 'phrase' and no lexicon holds a phrase: induce one from your translations with"
                " python -m data.lexicon, or leave it out."
            )
        return None

    def serves(self, lexicon: Lexicon | None, languages: tuple[str, ...], kind: str) -> bool:
        """Whether some generator may find something: a word list of the language, or translations, or itself."""
        on = self.generators.weights()
        if self.generates:
            return True
        listed = lexicon is not None and all(lexicon.name_of(language) for language in languages)
        return (listed and ("dictionary" in on or "phrase" in on)) or (
            kind == "parallel" and "sentence" in on
        )


def both_sides_mixed(share: float, stream: str, records: np.ndarray, epoch: int, seed: int) -> np.ndarray:
    """Whether both sides of each of ``records`` (n,) are mixed in an epoch: the planner sets room aside for it."""
    draws = hashed(key(seed, stream, epoch, "both mixed"), records)
    return (draws >> np.uint64(11)) / 2.0**53 < share


def room_of_text_and_mixed(
    lengths: Sequence[np.ndarray], maximum: int, languages: Sequence[str], config: TaskConfig
) -> np.ndarray:
    """Tokens of a text's document and of its mixed form's.

    Of two mixed forms where a second length is given that is not below zero.
    """
    (language,) = languages
    growth = _MIXED_GROWTH_OF_PIVOT if language == PIVOT else _MIXED_GROWTH
    if written_without_spaces(language):
        growth = _MIXED_GROWTH_WITHOUT_SPACES
    mixed = (lengths[0] * growth).astype(np.int64) + _MIXED_FURTHER + SPECIALS
    mixed = np.minimum(mixed, maximum)
    other = room_of_text(lengths, maximum, languages, config)
    if len(lengths) > 1:
        other = np.where(lengths[1] >= 0, mixed, other)
    return other + mixed


class _Source(NamedTuple):
    """What is mixed: a text as far as it was kept, and the other texts of its record."""

    language: str
    number: int  # of the language
    ids: np.ndarray  # (n,)
    text: str
    others: list[tuple[str, str]]  # (language, text)
    whole: bool  # nothing of the text was cut off
    teacher: np.ndarray | None  # (Et,) to the teacher all forms mean the same: it has read the original


class _Side(NamedTuple):
    """A mixed form as a document, and the document that fills its slots, where it has any."""

    document: Document
    how: Mixture
    asking: Document | None = None


def make_mixed_alignment(
    segments: Sequence[TextSegment], draw: Draw, material: Material, config: TaskConfig
) -> Made:
    """Contrastive alignment of a text with its mixed-language form, on either side at random, or of two of these.

    A text that was cut to the longest length is mixed as far as it was kept: its partner says nothing more. After
    the text ``segments`` may hold other texts of its record, which are its translations.
    """
    assert isinstance(config, MixedAlignmentConfig)
    segment, *others = segments
    ids = segment.ids[: material.maximum_tokens - SPECIALS]
    whole = len(ids) < material.maximum_tokens - SPECIALS  # the store cut the ids of a longer text to as many
    source = _Source(
        material.languages[segment.language],
        segment.language,
        ids,
        segment.text if whole else material.tokenizer.covered(segment.text, len(ids)),
        [(material.languages[other.language], other.text) for other in others],
        whole,
        segment.teacher,
    )
    both = both_sides_mixed(
        config.both_mixed, draw.stream_name, np.array([draw.record]), draw.epoch, draw.seed
    )[0]
    room = (draw.room // 2 if both else draw.room - len(ids) - SPECIALS) - SPECIALS
    side = _mixed_side(source, "mixing", room, draw, material, config)
    if side is None:
        return Made(None)
    original = context_document(wrapped(ids, material.tokenizer), segment.language, teacher=segment.teacher)
    mixed = [side]
    if both:
        second = _mixed_side(source, "mixing again", room, draw, material, config)
        if second is not None and not _same(second.document, side.document):
            mixed.append(second)
    pair = [(side.document, side.asking) for side in mixed]
    if len(pair) == 1:
        pair.insert(0, (original, None))
    if draw.random("side").random() < 0.5:
        pair.reverse()
    example = Example(
        draw.stream,
        [document for document, _ in pair],
        pairs=[(0, 1)],
        group=segment.group,
        generation=[asking for _, asking in pair if asking is not None],
    )
    return Made(example, tuple(side.how for side in mixed))


def _same(one: Document, other: Document) -> bool:
    return np.array_equal(one.token_ids, other.token_ids) and np.array_equal(one.language, other.language)


def _mixed_side(
    source: _Source, site: str, room: int, draw: Draw, material: Material, config: MixedAlignmentConfig
) -> _Side | None:
    """What the first generator that can makes of a text, in the order drawn; ``room`` without <s> and </s>."""
    weights = config.generators.weights()
    if PSEUDO_TOKENS in draw.shut:
        del weights["pseudo_tokens"]
    names = list(weights)
    if len(names) > 1:
        chances = np.array(list(weights.values())) / sum(weights.values())
        order = draw.random(f"{site}: generator")
        names = order.choice(names, len(names), replace=False, p=chances).tolist()
    for name in names:
        random = draw.random(site if name == "dictionary" else f"{site}: {name}")
        if name == "pseudo_tokens":
            side = _with_pseudo_tokens(source, site, room, draw, material, config.span_rate, random)
            if side is not None:
                return side
            continue
        mixed = _mixed_text(name, source, material.lexicon, config.replacement_rate, random)
        if mixed is None:
            continue
        (ids,) = material.tokenizer.encode([mixed.text])
        kept = ids[:room]
        if np.array_equal(kept, source.ids[: len(kept)]):  # what was translated stood behind the cut
            continue
        how = Mixture(
            name, mixed.replaced, mixed.translatable, mixed.words, mixed.languages, len(kept) < len(ids)
        )
        document = context_document(wrapped(kept, material.tokenizer), source.number, teacher=source.teacher)
        return _Side(document, how)
    return None


def _mixed_text(
    name: str, source: _Source, lexicon: Lexicon | None, rate: float, random: np.random.Generator
) -> MixedText | None:
    if name == "sentence":
        # The number of a sentence is what says that it is a translation: of a text that was cut it says nothing.
        others = source.others if source.whole else []
        return mix_sentences(source.text, source.language, others, random)
    assert lexicon is not None
    find = lexicon.words if name == "dictionary" else lexicon.phrases
    return mix(source.text, source.language, find(source.language, source.text), rate, random)


def _with_pseudo_tokens(
    source: _Source,
    site: str,
    room: int,
    draw: Draw,
    material: Material,
    rate: float,
    random: np.random.Generator,
) -> _Side | None:
    """Spans of the text are left to the model, which writes them in another language before the step.

    Whether it did is judged then (objectives/second_language.py): a pair with a text of one language is given up.

    It reads the whole text, and its placeholders stand at the places that tokens with the same numbers would have in
    a translation beside it: what CAMLM has taught it to predict. The language is drawn as for back-translation. Of
    a text that is longer than half of the longest document only the beginning has such places.
    """
    tokenizer, count = material.tokenizer, len(source.ids)
    reach = min(count, material.maximum_tokens - count - 2 * SPECIALS)
    target = target_language(source.number, material, random)
    spans = choose_spans(reach, count, rate, random)
    if target is None or count > room or not len(spans):
        return None
    kept = tokenizer.pieces(np.delete(source.ids, spans))
    if not any(
        character.isalpha() for piece in kept for character in piece
    ):  # nothing is left of its language
        return None
    ids, languages = source.ids.copy(), np.full(count + SPECIALS, source.number)
    ids[spans], languages[spans + 1] = tokenizer.mask_id, target
    document = context_document(wrapped(ids, tokenizer), languages, teacher=source.teacher)
    x = wrapped(source.ids, tokenizer)
    places = FIRST_POSITION + len(x) + 1 + spans  # after the </s> that begins the other side of a pair
    positions = np.arange(len(x)) + FIRST_POSITION
    asking = asking_document(x, positions, source.number, places, target, tokenizer.mask_id, draw)
    asking = replace(asking, draws=draw.random(f"{site}: decode").random(len(spans)))
    how = Mixture("pseudo_tokens", 0, count, count, 2, False)  # if it is kept
    return _Side(replace(document, slots=spans + 1), how, asking)
