"""What is measured: a step of one size, its text and its model; and the sizes of each preset."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

MASKED: Final = ("mmlm", "tlm", "camlm", "btmlm")
ALIGNMENT: Final = ("translation_alignment",)


class Texts(NamedTuple):
    """The corpora and the tokenizer of a problem."""

    lengths: str = (
        "demo"  # those of the demo's corpora, or "long": consecutive texts joined to 128 to 512 tokens
    )
    ids: int = 32_768  # of the tokenizer
    cut: int = 0  # tokens of a document at most; 0: 128, of long ones 512
    every: int = 1  # each so many-th line of the demo's files: fewer are prepared sooner

    @property
    def longest(self) -> int:
        """Tokens of a document at most."""
        return self.cut or (512 if self.lengths == "long" else 128)


class Problem(NamedTuple):
    """A training step: forward, backward and optimizer of so many tokens in documents."""

    tasks: tuple[str, ...] = MASKED
    texts: Texts = Texts()
    tokens: int = 4096  # of the step, as planned: what is not filled with documents is not computed
    layers: int = 6
    width: int = 384
    heads: int = 6
    feed_forward: int = 1536
    vocabulary: int = (
        32_768  # rows of the token table; those beyond the tokenizer's ids have no id, yet cost the same
    )
    precision: str = "fp32"
    microbatches: int = 0  # of the step; 0: one for each rank
    contestants: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()  # of them those that want so much memory that there is none beside all others
    rounds: int = 3
    device: str = "cpu"  # or "cuda": one GPU

    @property
    def aligns(self) -> bool:
        """Whether sentences are compared."""
        return self.tasks == ALIGNMENT

    def title(self) -> str:
        """As in the heading of a table."""
        lengths = {"demo": "the demo's lengths", "long": "128 to 512 tokens a text"}[self.texts.lengths]
        what = "alignment" if self.aligns else "masked tasks"
        where = "" if self.device == "cpu" else ", on a GPU"
        return (
            f"{what}, {lengths}, {self.vocabulary:,} rows of the table, {self.precision};"
            f" {self.layers} layers x {self.width}, {self.tokens:,} tokens a step{where}"
        )


class Work(NamedTuple):
    """What a step holds: the real tokens and what is predicted; what the model reads and writes before, if it does."""

    tokens: int
    predictions: int
    read_to_write: int = (
        0  # tokens of the documents in which pseudo tokens are written, in a forward of their own
    )
    written: int = 0


class Step(Protocol):
    """A contestant, built and ready."""

    @property
    def work(self) -> Work:
        """What one call computes, over all ranks."""

    def __call__(self) -> None:
        """One step: forward, backward, clipping and the optimizer."""


MASKED_CONTESTANTS: Final = ("one", "zero3", "ddp", "padded", "grouped", "products", "linear")
_BATCHES: Final = ("padded", "grouped")
ALIGNMENT_CONTESTANTS: Final = ("one", "sentence_transformers", "products", "linear")
XLM_R: Final = 250_002  # rows of its table
_SMALL: Final = Problem(
    texts=Texts(ids=4096, every=8),
    tokens=2048,
    layers=2,
    width=128,
    heads=4,
    feed_forward=512,
    vocabulary=4096,
)
_LONG: Final = Texts("long")
# The shape of XLM-R base with its table, on one GPU.
_GPU: Final = Problem(
    contestants=("one", "padded", "grouped", "products"),
    tokens=65_536,
    layers=12,
    width=768,
    heads=12,
    feed_forward=3072,
    vocabulary=XLM_R,
    precision="bf16",
    rounds=5,
    device="cuda",
)

PRESETS: Final[dict[str, tuple[Problem, ...]]] = {
    # For the guard: so small that it is over in a minute, with rounds enough for a ratio on a machine that is shared.
    "small": (
        _SMALL._replace(contestants=("one", "zero3", "ddp", "padded", "products"), rounds=11),
        _SMALL._replace(tasks=ALIGNMENT, contestants=("one", "sentence_transformers"), rounds=11),
    ),
    "quick": (
        Problem(contestants=MASKED_CONTESTANTS),
        Problem(vocabulary=XLM_R, contestants=MASKED_CONTESTANTS, apart=_BATCHES, tokens=2048, rounds=2),
        Problem(tasks=ALIGNMENT, contestants=ALIGNMENT_CONTESTANTS),
    ),
    "full": (
        Problem(contestants=MASKED_CONTESTANTS, tokens=8192),
        Problem(contestants=MASKED_CONTESTANTS, tokens=8192, texts=_LONG),
        Problem(contestants=MASKED_CONTESTANTS, apart=_BATCHES, tokens=4096, vocabulary=XLM_R),
        Problem(tasks=ALIGNMENT, contestants=ALIGNMENT_CONTESTANTS, tokens=8192),
        Problem(tasks=ALIGNMENT, contestants=ALIGNMENT_CONTESTANTS, tokens=8192, texts=_LONG),
        Problem(
            contestants=MASKED_CONTESTANTS,
            apart=_BATCHES,
            tokens=4096,
            vocabulary=XLM_R,
            texts=_LONG,
            rounds=2,
        ),
        Problem(contestants=MASKED_CONTESTANTS, tokens=2048, precision="bf16"),
        Problem(tasks=ALIGNMENT, contestants=ALIGNMENT_CONTESTANTS, tokens=2048, precision="bf16"),
    ),
    "gpu": (
        _GPU,
        _GPU._replace(texts=_LONG),
        _GPU._replace(tasks=ALIGNMENT, contestants=ALIGNMENT_CONTESTANTS),
    ),
}
