"""Back-translation masked language modelling (BTMLM; ERNIE-M, Ouyang et al., 2021; US20220171941A1).

    first pass    [<s> x </s> | placeholders]            the model writes K tokens of another language, all at once
    second pass   [<s> masked x </s> </s> pseudo </s>]   masked tokens of x are predicted from both

The layout is that of a pair of translations, the place of the pseudo tokens' first ``</s>`` included: so the first pass
asks for what CAMLM has taught, and the second is TLM with a translation of the model's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.keys import chances, sequence
from data.laid import FIRST_POSITION, Laid, context_documents
from data.masking import corrupt
from data.ragged import counted, places, row_of_each, starts_of
from data.settings.task import BackTranslationConfig, TaskConfig
from data.task import SPECIALS, Draws, Made, Material, Part, Records, ends_of
from data.texts import Texts


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


def make_btmlm(records: Records, material: Material, config: TaskConfig) -> Made:
    """[x pseudo | -]: masked tokens of x are predicted from x and from tokens that the model wrote itself.

    Pseudo tokens are never masked and never predicted. The language that they are written in is drawn from those
    that have bilingual text, x's own excluded; a record for which there is none gives no example.
    """
    assert isinstance(config, BackTranslationConfig)
    targets = target_languages(records.texts.languages, material, records.draws.chances("target"))
    kept = np.flatnonzero(targets >= 0)
    draws, targets = records.draws.taken(kept), targets[kept]
    texts = records.texts.taken(kept)
    texts = texts.cut(fitted_length(texts.lengths, config.pseudo_ratio, material.maximum_tokens))
    pseudo = pseudo_count(texts.lengths, config.pseudo_ratio)
    mask_id, ends = material.tokenizer.mask_id, ends_of(material.tokenizer)
    masked = corrupt(texts.ids, texts.lengths, config.mask_rate, mask_id, draws.of_use("mask"))
    x = texts.lengths + SPECIALS
    whole = x + pseudo + SPECIALS
    # <s> x </s> </s> pseudo </s>: a pair whose second side is placeholders.
    both = np.stack([texts.lengths, pseudo], 1).ravel()
    ids = np.full(int(both.sum()), mask_id)
    ids[places(starts_of(both)[::2], texts.lengths)] = masked.shown
    languages = np.stack([texts.languages, targets], 1).ravel()
    tokens = context_documents(ids, both, languages, (ends[1], ends[1]))["token_ids"]
    tokens[starts_of(whole)] = ends[0]
    ones = np.ones(len(kept), np.int64)
    laid = Laid(
        streams=draws.streams,
        documents=ones,
        token_ids=tokens,
        position_ids=counted(whole) + FIRST_POSITION,
        languages=np.repeat(languages, both + SPECIALS),
        lengths=whole,
        context_lengths=whole,
        shown=np.zeros(len(kept), bool),
        predictions=masked.counts,
        predicted=masked.predicted + 1,
        targets=masked.targets,
        slots=places(x + 1, pseudo),
        slot_documents=row_of_each(pseudo),
        generation=_asking(texts, pseudo, targets, draws, material),
    )
    return [Part(laid, kept)]


def _asking(texts: Texts, pseudo: np.ndarray, targets: np.ndarray, draws: Draws, material: Material) -> Laid:
    """[<s> x </s> | placeholders] of every text: at these readers the model writes tokens of the target language.

    It is always told: nothing else says in which one to write.
    """
    alone = context_documents(texts.ids, texts.lengths, texts.languages, ends_of(material.tokenizer))
    x = texts.lengths + SPECIALS
    whole, firsts = x + pseudo, starts_of(x + pseudo)
    tokens = np.full(int(whole.sum()), material.tokenizer.mask_id)
    positions = (
        counted(whole) + FIRST_POSITION + 1
    )  # the placeholders' come after the </s> that begins the other side
    of_context = places(firsts, x)
    tokens[of_context], positions[of_context] = alone["token_ids"], alone["position_ids"]
    return Laid(
        streams=draws.streams,
        documents=np.ones(len(x), np.int64),
        token_ids=tokens,
        position_ids=positions,
        languages=np.repeat(
            np.stack([texts.languages, targets], 1).ravel(), np.stack([x, pseudo], 1).ravel()
        ),
        lengths=whole,
        context_lengths=x,
        shown=np.ones(len(x), bool),
        predictions=pseudo,
        predicted=places(x, pseudo),
        targets=np.zeros(int(pseudo.sum()), np.int64),  # nothing is right or wrong here
        draws=chances(sequence(draws.of_use("decode"), pseudo)),
    )


def target_languages(sources: np.ndarray, material: Material, drawn: np.ndarray) -> np.ndarray:
    """(n,) a language to write in for each of ``sources`` (n,), another one; -1 if no other has bilingual text.

    ``drawn`` (n,) in [0, 1) chooses.
    """
    reached = material.bilingual.cumsum()
    own = material.bilingual[sources]
    left = reached[-1] - own  # what the others have together
    # Their shares end to end, with a gap where the own one would be.
    point = drawn * left
    point = np.where(point >= reached[sources] - own, point + own, point)
    found = np.minimum(np.searchsorted(reached, point, side="right"), len(reached) - 1)
    return np.where(left > 1e-12, found, -1)
