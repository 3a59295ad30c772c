"""Mixed-language alignment: a text and its mixed-language form are compared (US20220019743A1).

generators, drawn by weight ──▶ the first that can give something ──▶ (mixed, original), (original, mixed)
                                                                      or (mixed, mixed')
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from data.back_translation import target_languages
from data.keys import chances, sequence
from data.laid import FIRST_POSITION, Document, Example, Laid, context_documents
from data.mixed_alignment import both_sides_mixed
from data.mixing import MixedText, Mixture, mix, mix_sentences
from data.mixing_spans import choose_spans
from data.ragged import starts_of
from data.settings.mixed_alignment import PSEUDO_TOKENS, MixedAlignmentConfig
from data.settings.task import TaskConfig
from data.task import SPECIALS, Draw, Draws, Made, Material, Part, Records, ends_of, wrapped
from data.words import encoder_of


class _Source(NamedTuple):
    """What is mixed: a text as far as it was kept, and the other texts of its record."""

    language: str
    number: int  # of the language
    ids: np.ndarray  # (n,)
    text: str
    others: list[tuple[str, str]]  # (language, text)
    whole: bool  # nothing of the text was cut off
    teacher: np.ndarray | None  # (Et,) to the teacher all forms mean the same: it has read the original
    room: int  # tokens of a mixed form, without <s> and </s>
    both: bool  # whether it is mixed twice


class _Side(NamedTuple):
    """A mixed form as a document, and the document that fills its slots, where it has any."""

    ids: np.ndarray  # (n,) without <s> and </s>
    how: Mixture
    document: Document | None = None  # where it is more than its ids
    asking: Document | None = None


def make_mixed_alignment(records: Records, material: Material, config: TaskConfig) -> Made:
    """Contrastive alignment of a text with its mixed-language form, on either side at random, or of two of these.

    A text that was cut to the longest length is mixed as far as it was kept: its partner says nothing more. After
    the text a record may hold other texts of its row, which are its translations.
    """
    assert isinstance(config, MixedAlignmentConfig)
    sources = _sources(records, material, config)
    draws, numbers = records.draws, range(len(sources))
    first = _mixed_sides(sources, numbers, "mixing", draws, material, config)
    twice = [n for n in numbers if sources[n].both and n in first]
    second = _mixed_sides(sources, twice, "mixing again", draws, material, config)
    ahead = draws.chances("side") >= 0.5
    texts: list[tuple[int, _Side | None, _Side]] = []  # pairs that are there: record, sides
    asked: list[tuple[int, _Side | None, _Side]] = []  # those that the model has to write
    for number, side in first.items():
        other = second.get(number)
        if other is not None and _same(side, other):
            other = None
        written = side.asking is not None or (other is not None and other.asking is not None)
        (asked if written else texts).append((number, other, side))
    return [
        _laid_texts(texts, sources, ahead, records, material),
        _laid_documents(asked, sources, ahead, records, material),
    ]


def _sources(records: Records, material: Material, config: MixedAlignmentConfig) -> list[_Source]:
    texts, firsts = records.texts, starts_of(records.counts)
    most = material.maximum_tokens - SPECIALS
    sources = []
    passes: dict[tuple[int, int], list[int]] = {}
    both = np.zeros(len(firsts), bool)
    if config.both_mixed:
        for n, of in enumerate(
            zip(records.draws.streams.tolist(), records.draws.epochs.tolist(), strict=True)
        ):
            passes.setdefault(of, []).append(n)
        for (stream, epoch), mine in passes.items():
            name, which = records.draws.names[stream], records.draws.records[mine]
            both[mine] = both_sides_mixed(config.both_mixed, name, which, epoch, records.draws.seed)
    starts, lengths, languages = texts.starts.tolist(), texts.lengths.tolist(), texts.languages.tolist()
    counts, rooms, twice = records.counts.tolist(), records.draws.rooms.tolist(), both.tolist()
    taught = texts.teacher.shape[1] > 0
    for n, first in enumerate(firsts.tolist()):
        language, text, length = languages[first], texts.text(first), min(lengths[first], most)
        whole = length < most  # the store cut the ids of a longer text to as many
        others = range(first + 1, first + counts[n])
        room = rooms[n] // 2 if twice[n] else rooms[n] - length - SPECIALS
        sources.append(
            _Source(
                material.languages[language],
                language,
                texts.ids[starts[first] : starts[first] + length],
                text if whole else material.tokenizer.covered(text, length),
                [(material.languages[languages[other]], texts.text(other)) for other in others],
                whole,
                texts.teacher[first] if taught else None,
                room - SPECIALS,
                twice[n],
            )
        )
    return sources


def _laid_texts(
    pairs: Sequence[tuple[int, _Side | None, _Side]],
    sources: Sequence[_Source],
    ahead: np.ndarray,
    records: Records,
    material: Material,
) -> Part:
    """The examples of (record, other mixed form, mixed form) whose forms are nothing but ids."""
    which = np.array([number for number, _, _ in pairs], np.int64)
    sides = [(sources[n].ids if other is None else other.ids, side.ids) for n, other, side in pairs]
    ordered = [
        ids
        for pair, straight in zip(sides, ahead[which], strict=True)
        for ids in (pair if straight else pair[::-1])
    ]
    lengths = np.array([len(ids) for ids in ordered], np.int64)
    languages = np.repeat(np.array([sources[n].number for n in which], np.int64), 2)
    taught = bool(pairs) and sources[0].teacher is not None
    laid = Laid(
        streams=records.draws.streams[which],
        documents=np.full(len(which), 2),
        **context_documents(
            np.concatenate([np.empty(0, np.int32), *ordered]), lengths, languages, ends_of(material.tokenizer)
        ),
        pairs=np.arange(2 * len(which)).reshape(-1, 2),
        pair_examples=np.arange(len(which)),
        groups=records.texts.groups[starts_of(records.counts)[which]],
        teacher=np.repeat(np.stack([sources[n].teacher for n in which]), 2, axis=0) if taught else None,
    )
    return Part(laid, which, [_mixtures(other, side) for _, other, side in pairs])


def _laid_documents(
    pairs: Sequence[tuple[int, _Side | None, _Side]],
    sources: Sequence[_Source],
    ahead: np.ndarray,
    records: Records,
    material: Material,
) -> Part:
    """The same where the model writes a form first."""
    examples = []
    firsts = starts_of(records.counts)
    for number, other, side in pairs:
        source = sources[number]
        original = _Side(source.ids, side.how)
        pair = [original if other is None else other, side]
        if not ahead[number]:
            pair.reverse()
        examples.append(
            Example(
                int(records.draws.streams[number]),
                [each.document or _document(each.ids, source, material) for each in pair],
                pairs=[(0, 1)],
                group=int(records.texts.groups[firsts[number]]),
                generation=[each.asking for each in pair if each.asking is not None],
            )
        )
    which = np.array([number for number, _, _ in pairs], np.int64)
    return Part(Laid.of(examples), which, [_mixtures(other, side) for _, other, side in pairs])


def _document(ids: np.ndarray, source: _Source, material: Material) -> Document:
    whole = wrapped(ids, material.tokenizer)
    return Document(
        whole, np.arange(len(whole)) + FIRST_POSITION, source.number, len(whole), teacher=source.teacher
    )


def _mixtures(other: _Side | None, side: _Side) -> tuple[Mixture, ...]:
    return (side.how,) if other is None else (side.how, other.how)


def _same(one: _Side, other: _Side) -> bool:
    if (one.document is None) != (other.document is None) or not np.array_equal(one.ids, other.ids):
        return False
    return (
        one.document is None
        or other.document is None
        or np.array_equal(one.document.language, other.document.language)
    )


def _mixed_sides(
    sources: Sequence[_Source],
    numbers: Iterable[int],
    site: str,
    draws: Draws,
    material: Material,
    config: MixedAlignmentConfig,
) -> dict[int, _Side]:
    """What the first generator that can makes of each text, in the order drawn for it; of some, nothing."""
    weights = config.generators.weights()
    if PSEUDO_TOKENS in draws.shut:
        weights.pop("pseudo_tokens", None)
    waiting = {number: _generators(number, site, draws, weights) for number in numbers}
    found: dict[int, _Side] = {}
    while waiting:
        proposed: dict[int, tuple[str, MixedText]] = {}
        for name in list(dict.fromkeys(names[0] for names in waiting.values() if names)):
            here = [number for number, names in waiting.items() if names and names[0] == name]
            if name == "pseudo_tokens":
                for number in here:
                    side = _with_pseudo_tokens(sources[number], site, draws.one(number), material, config)
                    if side is not None:
                        found[number] = side
            else:
                texts = _mixed_texts(name, here, sources, site, draws, material, config)
                proposed |= {number: (name, text) for number, text in texts.items()}
        encoded = encoder_of(material.tokenizer)([mixed.text for _, mixed in proposed.values()])
        for (number, (name, mixed)), ids in zip(proposed.items(), encoded, strict=True):
            kept = ids[: sources[number].room]
            if kept.tobytes() == sources[number].ids[: len(kept)].tobytes():
                continue  # what was translated stood behind the cut
            cut = len(kept) < len(ids)
            how = Mixture(name, mixed.replaced, mixed.translatable, mixed.words, mixed.languages, cut)
            found[number] = _Side(kept, how)
        waiting = {n: names[1:] for n, names in waiting.items() if n not in found and len(names) > 1}
    return {number: found[number] for number in sorted(found)}


def _generators(number: int, site: str, draws: Draws, weights: Mapping[str, float]) -> list[str]:
    """The names of ``weights`` in the order drawn for a record."""
    names = list(weights)
    if len(names) < 2:
        return names
    parts = np.array(list(weights.values())) / sum(weights.values())
    random = draws.one(number).random(f"{site}: generator")
    return random.choice(names, len(names), replace=False, p=parts).tolist()


def _mixed_texts(
    name: str,
    numbers: Sequence[int],
    sources: Sequence[_Source],
    site: str,
    draws: Draws,
    material: Material,
    config: MixedAlignmentConfig,
) -> dict[int, MixedText]:
    """What one generator makes of texts that it can mix."""
    if name == "sentence":
        made = {}
        for number in numbers:
            # The number of a sentence is what says that it is a translation: of a text that was cut it says nothing.
            source = sources[number]
            others = source.others if source.whole else []
            random = draws.one(number).random(f"{site}: {name}")
            made[number] = mix_sentences(source.text, source.language, others, random)
        return {number: mixed for number, mixed in made.items() if mixed is not None}
    assert material.lexicon is not None
    find = material.lexicon.words if name == "dictionary" else material.lexicon.phrases
    words = [find(sources[number].language, sources[number].text) for number in numbers]
    counts = np.array([3 * len(each.matches) for each in words], np.int64)
    keys = draws.of_use(site if name == "dictionary" else f"{site}: {name}")[np.array(numbers, np.int64)]
    drawn, ends = chances(sequence(keys, counts)).tolist(), np.cumsum(counts).tolist()
    found = {}
    for number, of_text, count, end in zip(numbers, words, counts.tolist(), ends, strict=True):
        source, draw = sources[number], drawn[end - count : end]
        mixed = mix(source.text, source.language, of_text, config.replacement_rate, draw)
        if mixed is not None:
            found[number] = mixed
    return found


def _with_pseudo_tokens(
    source: _Source, site: str, draw: Draw, material: Material, config: MixedAlignmentConfig
) -> _Side | None:
    """Spans of the text are left to the model, which writes them in another language before the step.

    Whether it did is judged then (objectives/second_language.py): a pair with a text of one language is given up.

    It reads the whole text, and its placeholders stand at the places that tokens with the same numbers would have in
    a translation beside it: what CAMLM has taught it to predict. The language is drawn as for back-translation. Of
    a text that is longer than half of the longest document only the beginning has such places.
    """
    tokenizer, count = material.tokenizer, len(source.ids)
    random = draw.random(f"{site}: pseudo_tokens")
    reach = min(count, material.maximum_tokens - count - 2 * SPECIALS)
    (target,) = target_languages(np.array([source.number]), material, np.array([random.random()]))
    spans = choose_spans(reach, count, config.span_rate, random)
    if target < 0 or count > source.room or not len(spans):
        return None
    kept = tokenizer.pieces(np.delete(source.ids, spans))
    if not any(
        character.isalpha() for piece in kept for character in piece
    ):  # nothing is left of its language
        return None
    ids, languages = source.ids.copy(), np.full(count + SPECIALS, source.number)
    ids[spans], languages[spans + 1] = tokenizer.mask_id, target
    document = replace(_document(ids, source, material), language=languages, slots=spans + 1)
    x = wrapped(source.ids, tokenizer)
    asked = len(spans)
    of_x, behind = np.arange(len(x)) + FIRST_POSITION, FIRST_POSITION + len(x) + 1  # it begins with </s>
    asking = Document(
        np.concatenate([x, np.full(asked, tokenizer.mask_id)]).astype(np.int32),
        np.concatenate([of_x, behind + spans]),
        np.repeat([source.number, int(target)], [len(x), asked]),
        len(x),
        len(x) + np.arange(asked),
        np.zeros(asked, np.int64),  # nothing is right or wrong here
        draws=draw.random(f"{site}: decode").random(asked),
        language_shown=True,  # nothing else says in which one to write
    )
    how = Mixture("pseudo_tokens", 0, count, count, 2, False)  # if it is kept
    return _Side(ids, how, document, asking)
