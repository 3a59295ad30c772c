"""A pair of the small store, and a draw of the tests."""

from data.task import Draw, TextSegment


def pair(store, record=0, one="de", other="en"):
    corpus = store.corpora["rows"]
    found = {}
    for s in range(corpus.record_starts[record], corpus.record_starts[record + 1]):
        language = int(corpus.segment_language[s])
        found[store.languages[language]] = TextSegment(language, corpus.ids(s), corpus.text(s), 7)
    return [found[one], found[other]]


def draw(record, room=128, name="test"):
    return Draw(1, 0, name, record, 0, room)
