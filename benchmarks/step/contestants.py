"""Who takes part. What is behind a name is imported by the process that runs it."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final, NamedTuple

from benchmarks.step.problem import Problem, Step


class Contestant(NamedTuple):
    """As how many processes, whether they are those of a run, and what builds the step in each of them."""

    title: str
    module: str
    builder: str
    ranks: int = 1
    run: bool = False  # its environment and its memory are prepared as ``pretrain.py`` does it

    def build(self, problem: Problem) -> Step:
        """The step, ready."""
        builder: Any = getattr(import_module(f"benchmarks.step.{self.module}"), self.builder)
        step: Step = builder(problem)
        return step


CONTESTANTS: Final = {
    "one": Contestant("Calque, one process", "run", "RunStep", run=True),
    "zero3": Contestant("Calque, ZeRO-3, two ranks", "run", "RunStep", ranks=2, run=True),
    "ddp": Contestant("the same by torch's DDP, two ranks", "data_parallel", "step", ranks=2, run=True),
    "padded": Contestant("transformers, padded batches", "hugging_face", "padded_step"),
    "grouped": Contestant("transformers, grouped by length", "hugging_face", "grouped_step"),
    "sentence_transformers": Contestant(
        "sentence-transformers, padded pairs", "hugging_face", "SentenceStep"
    ),
    "products": Contestant("its matrix products alone", "products", "ProductsStep", run=True),
    "linear": Contestant("of these, linear layers and head", "products", "LinearStep", run=True),
}
