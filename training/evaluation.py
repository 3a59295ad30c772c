"""What the model is worth on held-out text: bitext retrieval, masked accuracy, CAMLM against its control, BTMLM.

The only door of accelerate, whose tools split the work over the ranks and gather what they found. Used in the
loop, where ``forward`` is the engine, and by ``training.evaluate`` on an exported or saved model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from data.back_translation import make_btmlm
from data.batch import PackedBatch
from data.laid import Laid, context_documents
from data.packing import pack
from data.ragged import counted, sums
from data.settings.task import BackTranslationConfig, CrossAttentionMaskedConfig, MaskedConfig, TaskConfig
from data.store import Corpus, TokenStore
from data.task import SPECIALS, Draw, Draws, Make, Material, Records, ends_of
from data.tasks import make_camlm, make_mmlm
from data.texts import Texts, TextSegment
from model.pretraining import PretrainingOutput
from objectives.back_translation import Generate, PseudoTokens
from training.config import EvaluationConfig
from training.masked_scores import MaskedSet, scores_of, sums_of
from training.pseudo_evaluation import PseudoEvaluation
from training.retrieval import LanguageRows, bitext_retrieval, joined, text_keys

Forward = Callable[[PackedBatch, bool], PretrainingOutput]  # (batch, sentence_vectors_only)
PIVOT = "en"


class Evaluator:
    """Holds the evaluation sets of a recipe, so that every evaluation of a run reads the same."""

    def __init__(
        self,
        store: TokenStore,
        material: Material,
        config: EvaluationConfig,
        microbatch_tokens: int,
        back_translation: BackTranslationConfig | None = None,
        pseudo: PseudoTokens | None = None,
        tensor_ranks: int = 1,
    ) -> None:
        """Build the fixed masks; texts for retrieval are packed when they are needed.

        ``back_translation`` and ``pseudo`` are given together, where BTMLM is measured too. ``tensor_ranks``
        neighbouring ranks share a model, and get the same part of the work.
        """
        self._split = partial(_split, tensor_ranks=tensor_ranks)
        self._store = store
        self._material = material
        self._config = config
        self._tokens = microbatch_tokens
        self._masked = self._masked_set(self._masked_examples)
        self.pseudo: PseudoEvaluation | None = None
        if back_translation is not None and pseudo is not None and config.masked:
            held_out = self._masked_set(partial(self._back_translated, back_translation))
            self.pseudo = PseudoEvaluation(held_out, pseudo, store.languages)

    def __call__(
        self, forward: Forward, generate: Generate | None = None, freeze_at: int | None = None
    ) -> dict[str, float]:
        """All figures, the same on every rank, by name: ``retrieval/test/mean``, ``masked/mmlm/accuracy`` ...

        BTMLM is measured if the model can ``generate``; ``freeze_at`` is explained with PseudoEvaluation.
        """
        with torch.no_grad():
            scores = {**self._retrieval(forward), **self._masked_scores(forward)}
            if self.pseudo is not None and generate is not None:
                scores |= self.pseudo(forward, generate, self._split, _gathered, freeze_at)
            return scores

    def _retrieval(self, forward: Forward) -> dict[str, float]:
        vectors = {
            name: self.embed(forward, self._store.corpora[name]) for name in compared_corpora(self._config)
        }
        return retrieval_figures(self._store, self._config, vectors)

    def embed(self, forward: Forward, corpus: Corpus) -> np.ndarray:
        """Sentence vectors (segments, E) float32 of a corpus, made by all ranks together."""
        order = np.argsort(corpus.segment_lengths, kind="stable")
        groups = list(_fill(order, corpus.segment_lengths[order] + SPECIALS, self._tokens))
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for group in self._split(groups):
            output = forward(self._sentences(corpus, group), True)
            found.append((group, output.sentence_vectors.float().cpu().numpy()))
        whole = np.zeros((len(order), found[0][1].shape[1]), dtype=np.float32)
        for group, vectors in _gathered(found):
            whole[group] = vectors
        return whole

    def _sentences(self, corpus: Corpus, segments: np.ndarray) -> PackedBatch:
        """A batch of texts to embed; each stands in a pair with itself, which makes it a compared document."""
        return sentence_batch([corpus.ids(int(segment)) for segment in segments], self._material)

    def _masked_set(
        self, examples_of: Callable[[Sequence[TextSegment], int, dict[str, int]], Iterator[Laid]]
    ) -> MaskedSet:
        names: dict[str, int] = {}
        examples: list[Laid] = []
        for corpus_name in self._config.masked:
            corpus = self._store.corpora[corpus_name]
            for record in range(min(len(corpus.record_starts) - 1, self._config.maximum_rows)):
                row = [
                    TextSegment(int(corpus.segment_language[s]), corpus.ids(s), "", 0)
                    for s in range(corpus.record_starts[record], corpus.record_starts[record + 1])
                ]
                examples += examples_of(row, record, names)
        batches = []
        sizes = np.array([len(example.token_ids) for example in examples], dtype=np.int64)
        for group in _fill(np.arange(len(examples)), sizes, self._tokens):
            arrays = pack([examples[i] for i in group], self._tokens, self._material.tokenizer.pad_id)
            batches.append(PackedBatch.from_arrays(arrays))
        return MaskedSet(batches, list(names))

    def _masked_examples(
        self, row: Sequence[TextSegment], record: int, names: dict[str, int]
    ) -> Iterator[Laid]:
        languages = self._material.languages
        pivot = next((s for s in row if languages[s.language] == PIVOT), None)
        for segment in row:
            language = languages[segment.language]
            yield self._made(make_mmlm, MaskedConfig(), f"mmlm/{language}", [segment], record, names)
            if pivot is None or segment is pivot:
                continue
            config = CrossAttentionMaskedConfig()
            pair = "-".join(sorted((language, PIVOT)))
            both = self._made(make_camlm, config, f"camlm/{pair}", [segment, pivot], record, names)
            yield both
            stream = names.setdefault(f"camlm_control/{pair}", len(names))
            # Not all special ids: an <unk> is a word of the other side, and says where it stands.
            specials = (self._material.tokenizer.bos_id, self._material.tokenizer.eos_id)
            yield replace(without_context(both, specials), streams=np.array([stream]))

    def _back_translated(
        self,
        config: BackTranslationConfig,
        row: Sequence[TextSegment],
        record: int,
        names: dict[str, int],
    ) -> Iterator[Laid]:
        for segment in row:
            name = f"btmlm/{self._material.languages[segment.language]}"
            yield self._made(make_btmlm, config, name, [segment], record, names)

    def _made(
        self,
        make: Make,
        config: TaskConfig,
        name: str,
        segments: Sequence[TextSegment],
        record: int,
        names: dict[str, int],
    ) -> Laid:
        stream = names.setdefault(name, len(names))
        draws = Draws.of([Draw(self._config.seed, stream, f"evaluation/{name}", record, 0, 0)])
        records = Records(Texts.of(segments), np.array([len(segments)]), draws)
        (made,) = make(records, self._material, config)
        assert len(made.records) == 1
        return made.laid

    def _masked_scores(self, forward: Forward) -> dict[str, float]:
        batches, names = self._masked
        if not batches:
            return {}
        # Each batch is counted once although the split repeats some of them to give every rank as many.
        found = []
        for number, batch in self._split(list(enumerate(batches))):
            found.append((number, sums_of(forward(batch, False), batch, len(names))))
        return scores_of(np.sum(list(dict(_gathered(found)).values()), axis=0), names)


def sentence_batch(texts: Sequence[np.ndarray], material: Material) -> PackedBatch:
    """A batch whose documents are ``texts`` (ids without special tokens), all of them compared, nothing predicted."""
    kept = [ids[: material.maximum_tokens - SPECIALS] for ids in texts]
    lengths, each = np.array([len(ids) for ids in kept], np.int64), np.arange(len(texts))
    documents = context_documents(
        np.concatenate(kept), lengths, np.zeros(len(texts), np.int64), ends_of(material.tokenizer)
    )
    nothing = np.zeros(len(texts), np.int64)
    laid = Laid(
        streams=nothing,
        documents=nothing + 1,
        **documents,
        pairs=np.stack([each, each], 1),
        pair_examples=each,
        groups=nothing.astype(np.uint64),
    )
    return PackedBatch.from_arrays(pack([laid], len(laid.token_ids), material.tokenizer.pad_id))


def compared_corpora(config: EvaluationConfig) -> list[str]:
    """The corpora that the retrieval sets need vectors of, each once, in the order of the recipe."""
    return list(
        dict.fromkeys(name for sets in config.retrieval.values() for name in (sets.corpus, *sets.among))
    )


def retrieval_figures(
    store: TokenStore, config: EvaluationConfig, vectors: Mapping[str, Any]
) -> dict[str, float]:
    """All retrieval figures by name; ``vectors`` holds (segments, E) for each corpus, whoever made them."""
    figures: dict[str, float] = {}
    for name, sets in config.retrieval.items():
        found = bitext_retrieval(
            language_rows(store, sets.corpus, vectors),
            distractors=distractors(store, sets.among, vectors),
            pivot=PIVOT,
            other_pairs=config.other_pairs,
            seed=config.seed,
        )
        figures |= found.scalars(name)
    return figures


def language_rows(store: TokenStore, corpus_name: str, vectors: Mapping[str, Any]) -> dict[str, LanguageRows]:
    """A corpus's rows as retrieval takes them; ``vectors`` holds (segments, E) for each corpus."""
    corpus = store.corpora[corpus_name]
    rows = {}
    for number in np.unique(corpus.segment_language):
        segments = np.flatnonzero(corpus.segment_language == number)
        keys = text_keys([corpus.text(int(segment)) for segment in segments])
        rows[store.languages[number]] = LanguageRows(
            corpus.segment_record[segments], vectors[corpus_name][segments], keys
        )
    return rows


def distractors(
    store: TokenStore, corpora: Sequence[str], vectors: Mapping[str, Any]
) -> dict[str, LanguageRows] | None:
    """The rows of several corpora as one set of further candidates."""
    parts = [language_rows(store, corpus, vectors) for corpus in corpora]
    if not parts:
        return None
    together = {}
    for language in sorted({language for part in parts for language in part}):
        together[language] = joined([part[language] for part in parts if language in part])
    return together


def without_context(laid: Laid, specials: Iterable[int]) -> Laid:
    """The control of CAMLM: the same readers, and of the other side nothing but its special tokens."""
    context = counted(laid.lengths) < np.repeat(laid.context_lengths, laid.lengths)
    kept = ~context | np.isin(laid.token_ids, list(specials))
    lengths = sums(kept, laid.lengths)
    moved = laid.lengths - lengths
    return replace(
        laid,
        **{name: getattr(laid, name)[kept] for name in ("token_ids", "position_ids", "languages")},
        lengths=lengths,
        context_lengths=laid.context_lengths - moved,
        predicted=laid.predicted - np.repeat(moved, laid.predictions),
    )


def _fill(items: np.ndarray, sizes: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """Consecutive ``items`` in groups of at most ``tokens`` tokens."""
    first, filled = 0, 0
    for i, size in enumerate(sizes):
        if filled + size > tokens and i > first:
            yield items[first:i]
            first, filled = i, 0
        filled += int(size)
    if first < len(items):
        yield items[first:]


def _gathered(items: list) -> list:
    """Of all ranks, in their order."""
    from accelerate.utils import gather_object  # here: a run that evaluates nothing yet starts without it

    found: list = gather_object(items)
    return found


def _split(items: list, tensor_ranks: int) -> Iterator:
    """This rank's part of ``items``; every rank gets as many, the last item is repeated where they do not divide."""
    from accelerate import PartialState

    # Told of the CPU, else it takes every rank there for the only one.
    state = PartialState(cpu=not torch.cuda.is_available())
    ranks = state.num_processes // tensor_ranks
    each = -(-len(items) // ranks)
    parts = [items[rank * each : (rank + 1) * each] for rank in range(ranks)]
    # One part for every process: the tensor ranks of a data rank run the model together.
    whole = [part + items[-1:] * (each - len(part)) for part in parts for _ in range(tensor_ranks)]
    with state.split_between_processes(whole) as mine:
        for part in mine:
            yield from part
