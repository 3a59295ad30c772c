"""The microbatches of all ranks together: the same documents, masks and mixed text however a step is cut, the same
arrays whoever makes them; workers live as long as their run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data.microbatch import Microbatch
from data.planner import LAG
from data.recipe import UserError
from data.store import Corpus
from data.stream import BatchStream
from data.tally import Tally
from tests.data.batch_streams import processes_of, streams_for
from tests.training.runs import WITH_BTMLM

STEPS = 4


def all_steps(streams: list[BatchStream], steps: int = STEPS) -> list[list[Microbatch]]:
    """The microbatches of all ranks, step by step, with the tokens summed over ranks fed back to each."""
    found = []
    for step in range(1, steps + 1):
        microbatches = [microbatch for stream in streams for microbatch in stream.next()]
        tokens = sum(microbatch.tally for microbatch in microbatches)[:, Tally.TOKENS]
        for stream in streams:
            stream._planner.feedback(step, tokens)
        found.append(microbatches)
    return found


def contents(microbatches: list[Microbatch]) -> Counter[object]:
    """Everything that a step holds, whatever microbatch it is in: documents with masks, and pairs of documents."""
    found: Counter[object] = Counter()
    cut = [microbatch.arrays for microbatch in microbatches]
    for arrays in [*cut, *(arrays["generation"] for arrays in cut if arrays["generation"])]:
        starts = arrays["document_starts"]
        order = np.searchsorted(starts, arrays["predicted"], side="right") - 1
        documents = []
        for n, (start, end) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
            mine = order == n
            documents.append(
                (
                    arrays["token_ids"][start:end].tobytes(),
                    arrays["position_ids"][start:end].tobytes(),
                    arrays["language_ids"][start:end].tobytes(),
                    arrays["language_shown"][start:end].tobytes(),
                    tuple(arrays["slots"][(arrays["slots"] >= start) & (arrays["slots"] < end)] - start),
                    arrays["draws"][mine].tobytes() if len(arrays["draws"]) else b"",
                    int(arrays["context_lengths"][n]),
                    (arrays["predicted"][mine] - start).tobytes(),
                    arrays["targets"][mine].tobytes(),
                    arrays["prediction_stream"][mine].tobytes(),
                )
            )
        if len(starts) > 1 and (arrays["token_ids"][starts[-2] :] == 1).all():
            documents.pop()  # the padding, which does depend on the cut
        found.update(documents)
        for pair, group, stream in zip(
            arrays["pairs"].tolist(), arrays["pair_groups"], arrays["pair_stream"], strict=True
        ):
            found[documents[pair[0]], documents[pair[1]], int(group), int(stream)] += 1
    return found


@pytest.fixture(scope="module")
def whole(small_recipe: Path) -> list[Counter[object]]:
    return [contents(step) for step in all_steps(streams_for(small_recipe, *WITH_BTMLM, tokens=4096))]


@pytest.mark.parametrize(
    ("ranks", "tokens"), [(1, 512), (1, 1024), (2, 1024), (3, 1024), (4, 2048), (5, 512), (8, 512)]
)
def test_the_ranks_together_see_the_same_documents_masks_and_mixed_text(
    small_recipe: Path, whole: list[Counter[object]], ranks: int, tokens: int
) -> None:
    for step, truth in zip(
        all_steps(streams_for(small_recipe, *WITH_BTMLM, ranks=ranks, tokens=tokens)), whole, strict=True
    ):
        assert contents(step) == truth
        assert len(step) % ranks == 0  # every rank has as many microbatches, some of them empty


def test_so_do_texts_that_are_compared_several_times(small_recipe: Path) -> None:
    several = "tasks.translation_alignment.texts=4"
    truth = [contents(step) for step in all_steps(streams_for(small_recipe, several, tokens=4096))]
    found = all_steps(streams_for(small_recipe, several, ranks=3, tokens=512))
    assert [contents(step) for step in found] == truth


def test_so_do_all_generators_of_mixed_text_on_either_or_both_sides(small_recipe: Path) -> None:
    mixed = "{generators: {dictionary: 1, phrase: 1, sentence: 1, pseudo_tokens: 1}, both_mixed: 0.4}"
    settings = (f"tasks={{mixed_alignment: {mixed}}}", "model.language_embeddings=true")
    whole = all_steps(streams_for(small_recipe, *settings, tokens=4096), 2)
    truth = [contents(step) for step in whole]
    assert [
        contents(s) for s in all_steps(streams_for(small_recipe, *settings, ranks=3, tokens=512), 2)
    ] == truth
    total = sum(microbatch.tally for step in whole for microbatch in step).sum(axis=0)
    # What the model is to write is not counted yet, nor is how much the pairs share.
    assert total[Tally.BY_PSEUDO_TOKENS] == total[Tally.OVERLAP] == total[Tally.BASELINE_ROWS] == 0
    for microbatch in (microbatch for step in whole for microbatch in step):
        if microbatch.unwritten is not None:
            total = total + microbatch.unwritten.tallies.sum(axis=0)
            assert set(microbatch.unwritten.pairs) < set(microbatch.unwritten.mixed)
    by_generator = total[Tally.BY_DICTIONARY : Tally.BY_PSEUDO_TOKENS + 1]
    assert (by_generator > 0).all() and by_generator.sum() == total[Tally.MIXED]
    assert total[Tally.PAIRS] < total[Tally.MIXED] < 2 * total[Tally.PAIRS]
    assert total[Tally.LANGUAGES] >= 2 * total[Tally.MIXED]


def test_what_mixed_pairs_share_is_counted_in_their_microbatch(small_recipe: Path) -> None:
    mixed = "tasks={mixed_alignment: {generators: {dictionary: 1, sentence: 1}, both_mixed: 0.4}}"
    steps = all_steps(streams_for(small_recipe, mixed, tokens=4096), 2)
    total = sum(microbatch.tally for step in steps for microbatch in step).sum(axis=0)
    assert all(microbatch.unwritten is None for step in steps for microbatch in step)
    assert 0 < total[Tally.OVERLAP] < 1e6 * total[Tally.PAIRS]
    assert 0 < total[Tally.BASELINE_CORRECT] <= total[Tally.BASELINE_ROWS] <= 2 * total[Tally.PAIRS]


def test_records_that_no_generator_can_mix_are_counted(small_recipe: Path) -> None:
    only = "tasks={mixed_alignment: {generators: {sentence: 1}}}"
    steps = all_steps(streams_for(small_recipe, only, tokens=4096), 2)
    planned = sum(microbatch.tally for step in steps for microbatch in step).sum(axis=0)
    assert planned[Tally.REJECTED] > planned[Tally.PAIRS] > 0  # most records of the demo have one sentence
    assert planned[Tally.BY_SENTENCE] == planned[Tally.MIXED] == planned[Tally.PAIRS]


def test_half_of_the_documents_tell_their_language_and_all_that_generate(small_recipe: Path) -> None:
    told = Counter[bool]()
    for step in all_steps(streams_for(small_recipe, *WITH_BTMLM, tokens=4096)):
        for arrays, tally, _ in step:
            assert arrays["generation"]["language_shown"].all()
            assert tally[:, Tally.PSEUDO].sum() == len(arrays["slots"]) > 0
            starts = arrays["document_starts"]
            for start, end in zip(starts[:-1], starts[1:], strict=True):
                of_document = arrays["language_shown"][start:end]
                assert of_document.all() or not of_document.any()
                told[bool(of_document[0])] += arrays["token_ids"][start] != 1  # not the padding
    assert sum(told.values()) > 300
    assert abs(told[True] / sum(told.values()) - 0.5) < 0.08


def test_steps_differ_and_hold_every_task(small_recipe: Path, whole: list[Counter[object]]) -> None:
    assert all(one != other for i, one in enumerate(whole) for other in whole[:i])
    for step in all_steps(streams_for(small_recipe)):
        tally = sum(microbatch.tally for microbatch in step)
        assert tally[:, Tally.PREDICTIONS].sum() > 0 and tally[:, Tally.PAIRS].sum() > 0
        assert tally[:, Tally.REPLACED].sum() > 0


def test_mixed_texts_that_are_cut_are_counted(small_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def share_of_cut_texts() -> float:
        steps = all_steps(streams_for(small_recipe, "tasks={mixed_alignment: {}}", tokens=4096))
        total = sum(microbatch.tally for step in steps for microbatch in step).sum(axis=0)
        return float(total[Tally.CUT] / total[Tally.PAIRS])

    few = share_of_cut_texts()
    for growth in ("_MIXED_GROWTH", "_MIXED_GROWTH_OF_PIVOT", "_MIXED_GROWTH_WITHOUT_SPACES"):
        monkeypatch.setattr(f"data.mixed_alignment.{growth}", 1.0)
    monkeypatch.setattr("data.mixed_alignment._MIXED_FURTHER", 0)
    assert 0 < few < share_of_cut_texts() / 2


def arrays_equal(one: Microbatch, other: Microbatch) -> bool:
    same = all(np.array_equal(one.arrays[name], other.arrays[name]) for name in one.arrays)
    return same and one.arrays.keys() == other.arrays.keys() and np.array_equal(one.tally, other.tally)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_make_the_same_arrays_as_the_run_itself_and_ignore_its_signals(
    small_recipe: Path, workers: int
) -> None:
    truth = all_steps(streams_for(small_recipe, ranks=2, only=1), 6)
    streams = streams_for(small_recipe, ranks=2, only=1, workers=workers)
    try:
        found = all_steps(streams, 1)
        processes = processes_of(streams[0])
        assert len(processes) == workers
        for process in processes:
            for number in (signal.SIGTERM, signal.SIGINT):
                os.kill(process, number)
        # The planner of a stream goes on where it is: feed back from the second step on.
        for step in range(2, 7):
            microbatches = streams[0].next()
            tokens = sum(microbatch.tally for microbatch in microbatches)[:, Tally.TOKENS]
            streams[0]._planner.feedback(step, tokens)
            found.append(microbatches)
    finally:
        streams[0].close()
    for step, true in zip(found, truth, strict=True):
        assert all(arrays_equal(one, other) for one, other in zip(step, true, strict=True))


RUN = """
import sys, time
from pathlib import Path
from tests.data.batch_streams import processes_of, streams_for
if __name__ == "__main__":
    (stream,) = streams_for(Path(sys.argv[1]), workers=2)
    stream.next()
    print(*processes_of(stream), flush=True)
    time.sleep(60)
"""


def test_workers_end_when_their_run_is_killed(small_recipe: Path, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(RUN)
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    run = subprocess.Popen(
        [sys.executable, script, small_recipe], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert run.stdout is not None
        workers = [int(number) for number in run.stdout.readline().split()]
        assert len(workers) == 2 and all(alive(worker) for worker in workers)
    finally:
        run.kill()
        run.wait()
    deadline = time.monotonic() + 10
    while any(alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(worker) for worker in workers)


def test_a_worker_that_is_gone_ends_the_run_with_one_message(small_recipe: Path) -> None:
    (stream,) = streams_for(small_recipe, workers=2)
    try:
        with pytest.raises(UserError, match="a process that makes batches was ended from outside"):
            for step in range(1, LAG + 4):
                tokens = sum(microbatch.tally for microbatch in stream.next())[:, Tally.TOKENS]
                stream._planner.feedback(step, tokens)
                if step == 1:
                    os.kill(processes_of(stream)[0], signal.SIGKILL)
    finally:
        stream.close()


LOSES_A_WORKER = """
import os, signal, sys, time
from pathlib import Path
from data.recipe import UserError
from tests.data.batch_streams import processes_of, streams_for
if __name__ == "__main__":
    for worker in range(2):
        (stream,) = streams_for(Path(sys.argv[1]), workers=2)
        stream.next()
        time.sleep(2)  # until both wait for work, and one of them holds the lock of what hands it out
        os.kill(processes_of(stream)[worker], signal.SIGKILL)
        time.sleep(0.5)
        try:
            stream._workers.submit(None, ())
        except UserError as error:
            print(error)
        finally:
            stream.close()
"""


def test_a_run_that_lost_a_worker_comes_to_its_end(small_recipe: Path, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(LOSES_A_WORKER)
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, script, small_recipe]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=90)
    assert done.stdout.count("was ended from outside") == 2 and not done.stderr


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("wrong", [-1, 1 << 20])
def test_an_id_outside_of_the_vocabulary_never_leaves_for_the_model(
    small_recipe: Path, monkeypatch: pytest.MonkeyPatch, wrong: int
) -> None:
    (stream,) = streams_for(small_recipe)
    read = Corpus.id_columns.func  # type: ignore[attr-defined]

    def damaged(corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
        ends, ids = read(corpus)
        ids = np.array(ids)
        ids[np.asarray(ends)[1:] - 1] = wrong
        return ends, ids

    monkeypatch.setattr(Corpus, "id_columns", property(damaged))
    with pytest.raises(UserError, match="holds ids outside of its vocabulary.*--rebuild"):
        stream.next()
