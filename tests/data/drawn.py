"""A pair of the small store, a draw of the tests, and what a task's function makes of one record."""

from typing import NamedTuple

import numpy as np

from data.laid import Document, Example, Triplet
from data.mixing import Mixture
from data.ragged import starts_of
from data.task import Draw, Draws, Records
from data.texts import Texts, TextSegment


def pair(store, record=0, one="de", other="en"):
    corpus = store.corpora["rows"]
    found = {}
    for s in range(corpus.record_starts[record], corpus.record_starts[record + 1]):
        language = int(corpus.segment_language[s])
        found[store.languages[language]] = TextSegment(language, corpus.ids(s), corpus.text(s), 7)
    return [found[one], found[other]]


def draw(record, room=128, name="test"):
    return Draw(1, 0, name, record, 0, room)


class Made(NamedTuple):
    """Of one record."""

    example: Example | None
    mixed: tuple[Mixture, ...] = ()


def made_of(make, segments, draw, material, config) -> Made:
    """What ``make`` makes of a record of ``segments``."""
    (found,) = each(make, [segments], [draw], material, config)
    return found


def each(make, records, draws, material, config) -> list[Made]:
    """What ``make`` makes of records, each by itself."""
    texts = Texts.of([segment for segments in records for segment in segments])
    counts = np.array([len(segments) for segments in records])
    found = [Made(None)] * len(records)
    for part in make(Records(texts, counts, Draws.of(draws)), material, config):
        for place, record, example in zip(
            range(len(records)), part.records, examples_of(part.laid), strict=False
        ):
            found[record] = Made(example, tuple(part.mixed[place]) if part.mixed else ())
    return found


def segments_of(stream, record, epoch=0, seed=1):
    """The segments of one record."""
    _, segments = stream.segments_of(np.array([record]), epoch, seed)
    return [s for s in segments[0].tolist() if s >= 0]


def corpus_of(stream, record):
    """The number of the corpus of one record."""
    corpora, _ = stream.segments_of(np.array([record]), 0, 1)
    return int(corpora[0])


def examples_of(laid):
    """The examples of columns, one by one."""
    generation = [example.documents for example in examples_of(laid.generation)] if laid.generation else None
    documents = documents_of(laid)
    found = []
    for n, (first, count) in enumerate(zip(starts_of(laid.documents), laid.documents, strict=True)):
        triplets = [
            Triplet(
                int(laid.triplets.anchors[q] - first),
                int(laid.triplets.positives[q] - first),
                [int(d - first) for d in laid.triplets.negatives[q] if d >= 0],
                laid.triplets.gaps[q][laid.triplets.negatives[q] >= 0].tolist(),
            )
            for q in np.flatnonzero(laid.triplet_examples == n)
        ]
        found.append(
            Example(
                int(laid.streams[n]),
                documents[first : first + count],
                [tuple(p) for p in (laid.pairs[laid.pair_examples == n] - first).tolist()],
                int(laid.groups[n]) if len(laid.groups) else 0,
                triplets,
                generation[n] if generation else (),
            )
        )
    return found


def documents_of(laid):
    """The documents of columns, one by one."""
    tokens, predictions = starts_of(laid.lengths), starts_of(laid.predictions)
    found = []
    for n, (start, length) in enumerate(zip(tokens, laid.lengths, strict=True)):
        of = slice(start, start + length)
        predicted = slice(predictions[n], predictions[n] + laid.predictions[n])
        languages = laid.languages[of]
        same = (languages == languages[0]).all()
        found.append(
            Document(
                laid.token_ids[of],
                laid.position_ids[of],
                int(languages[0]) if same else languages,
                int(laid.context_lengths[n]),
                laid.predicted[predicted],
                laid.targets[predicted],
                None if laid.teacher is None or not laid.teacher[n].any() else laid.teacher[n],
                laid.slots[laid.slot_documents == n],
                laid.draws[predicted] if len(laid.draws) else laid.draws,
                bool(laid.shown[n]),
            )
        )
    return found
