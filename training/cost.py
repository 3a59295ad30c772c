"""What a step costs a rank, by arithmetic: operations, bytes moved and sent, messages; and the time that they take.

Of R rows, D width, F inner width, V ids, M predictions, S = sum of L * L over the documents, in a forward; the
gradients of inputs and of weights are as much each (Korthikanti et al., 2022, count the same)::

    layers       products   2 R (4 D D + 2 D F)        attention   4 S D
    the last     products   2 R 3 D D + 2 K (D D + 2 D F), of the K rows that are read afterwards
    head         products   2 M D (D + V)              pool        2 P P' D, of the P pairs here and P' of the step

and what is run without gradient beforehand (pseudo tokens; the pool's first pass) or again (checkpointing) one more
forward. Between products everything is moved through memory: elements times a count that is taken from the model's
code. The optimizer moves each of its numbers a few times. Seconds are the sum over all of these, each at a rate of the
machine: nothing is taken to overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from model.config import EncoderConfig
from training.activation_sizes import Contents, Cutting
from training.sizes import Shapes, Zero, elements
from training.traffic import Passes, messages_of_tensor, messages_of_zero

# Reads and writes of an element, forward and backward, that are no operands of a product.
_OF_PLACES: Final = 3 * 8  # queries, keys and values into place and out of it
_OF_NORMS: Final = 3 * 10  # a layer's two norms and two sums
_OF_INNER: Final = 3 * 2  # GELU
_OF_SCORES: Final = 3 * 3  # softmax within documents
_OF_LOGITS: Final = 4  # written, read for the maximum and the sum, made the gradient
_OF_PARAMETER: Final = (
    12  # float32 numbers: gradient added up, its norm, clipped; master, moments; weight written
)
_CALLS_OF_LAYER: Final = 60  # operations that are started in a layer, forward and backward
_CALLS_OF_MICROBATCH: Final = 300  # embedding, head, losses, what the step itself does


class Work(NamedTuple):
    """Of a rank in a step."""

    layers: float  # operations of the products in the layers
    head: float  # and of those with the token table, and of the pool
    attention: float
    moved: float  # bytes between the products
    updated: float  # bytes of the optimizer's numbers
    calls: float  # operations that are started
    sent: float = 0.0  # bytes, to data ranks
    shared: float = 0.0  # bytes, to tensor ranks
    messages: float = 0.0

    @property
    def operations(self) -> float:
        """All of the products."""
        return self.layers + self.head + self.attention


class Machine(NamedTuple):
    """Rates of a rank's device and its network."""

    layers: float  # operations a second
    head: float
    attention: float
    memory: float  # bytes a second
    call: float  # seconds
    network: float = float("inf")  # bytes a second, to data ranks
    inside: float = float("inf")  # to tensor ranks, which are of one machine
    message: float = 0.0  # seconds

    def parts(self, work: Work) -> dict[str, float]:
        """Seconds of each part of ``work``."""
        return {
            "layers": work.layers / self.layers,
            "head": work.head / self.head,
            "attention": work.attention / self.attention,
            "memory": (work.moved + work.updated) / self.memory,
            "calls": work.calls * self.call,
            "messages": work.sent / self.network + work.shared / self.inside + work.messages * self.message,
        }

    def seconds(self, work: Work) -> float:
        """Of the whole."""
        return sum(self.parts(work).values())


class Gpu(NamedTuple):
    """Rates of a data sheet: bf16 products without sparsity, memory, and the network of each GPU."""

    operations: float
    memory: float
    inside: float  # between the GPUs of a machine, one direction
    outside: float  # between machines

    def machine(self, ranks: int, reached: float) -> Machine:
        """As a rank of so many sees it, with products at a part of their rate; calls and messages are estimates."""
        rate = self.operations * reached
        network = self.inside if ranks <= GPUS_OF_A_MACHINE else self.outside
        return Machine(rate, rate, rate, self.memory, 4e-6, network, self.inside, 2e-5)


GPUS_OF_A_MACHINE: Final = 8
GPUS: Final = {
    "A100 80 GB": Gpu(312e12, 2.04e12, 300e9, 25e9),
    "H100 SXM": Gpu(989e12, 3.35e12, 450e9, 50e9),
}
REACHED: Final = 0.5  # of the data sheet's rate, beside all of it


def times_on_gpus(work: Work, tokens: int, ranks: int) -> Iterator[str]:
    """Lines of a table: how long a step of ``tokens`` takes ``ranks`` GPUs, as a sum in which nothing overlaps."""
    yield "    GPU          products at    s a step  products  attention  memory  calls  messages   tokens/s of all"
    for name, kind in GPUS.items():
        for reached in (1.0, REACHED):
            machine = kind.machine(ranks, reached)
            parts = machine.parts(work)
            columns = (
                parts["layers"] + parts["head"], parts["attention"], parts["memory"], parts["calls"], parts["messages"]
            )  # fmt: skip
            each = [f"{100 * seconds / machine.seconds(work):.0f} %" for seconds in columns]
            yield (
                f"    {name:<12} {100 * reached:9.0f} % {machine.seconds(work):11.4f} {each[0]:>9} {each[1]:>10}"
                f" {each[2]:>7} {each[3]:>6} {each[4]:>9} {tokens / machine.seconds(work):17,.0f}"
            )


def work_of(
    config: EncoderConfig,
    shapes: Shapes,
    contents: Contents,
    cutting: Cutting,
    passes: Passes,
    zero: Zero,
    data: int,
    sent: float,
    shared: float,
) -> Work:
    """The work of one of ``data`` data ranks with ``passes`` microbatches of ``contents``, which sends ``sent``
    bytes to data and ``shared`` to tensor ranks.

    ``contents.squares`` is S, on whatever device.
    """
    width, inner, rows, layers = config.width, config.feed_forward, contents.rows, config.layers
    before = contents.generated * passes.generation + contents.sentence_tokens * passes.pool
    forwards = 3 + cutting.checkpointing + before / max(rows, 1)  # of the layers, gradients counted too
    kept = cutting.kept(rows, contents.read)
    written = contents.written * passes.generation
    products = (3 + cutting.checkpointing) * _of_layers(config, rows, kept)
    generated = contents.generated * passes.generation
    products += _of_layers(config, generated, cutting.kept(generated, written))
    pooled = contents.sentence_tokens * passes.pool
    products += _of_layers(config, pooled, pooled)
    # torch's kernel on a GPU keeps no weights and multiplies once more in its backward.
    attention = 4 * contents.squares * width * layers / cutting.tensor
    again = 0.5 if cutting.device == "cuda" else 0.0
    logits = contents.predicted * config.vocabulary_size / cutting.tensor
    pairs = contents.pairs * passes.microbatches
    head = 6 * contents.predicted * width * width + 2 * width * (
        3 * logits + written * config.vocabulary_size / cutting.tensor
    )
    pool = 6 * contents.pairs * pairs * data * width
    moved = zero.weight * (
        (
            layers * rows * _OF_PLACES * width
            + ((layers - 1) * rows + kept) * (_OF_NORMS * width + _OF_INNER * inner / cutting.tensor)
        )
        * forwards
        / 3
        + layers
        * contents.squares
        * config.heads
        / cutting.tensor
        * (_OF_SCORES if cutting.device == "cpu" else 0)
        + _OF_LOGITS * logits
    )
    own = sum(map(elements, shapes.values())) / (data if zero.stage > 0 else 1)
    calls = _CALLS_OF_LAYER * layers * forwards / 3 + _CALLS_OF_MICROBATCH
    often = passes.microbatches
    return Work(
        often * products / cutting.tensor,
        often * (head + pool),
        often * attention * (forwards + again),
        often * moved,
        4 * _OF_PARAMETER * own,
        often * calls,
        sent,
        shared,
        messages_of_zero(shapes, zero, data, passes) + messages_of_tensor(config, cutting, passes),
    )


def _of_layers(config: EncoderConfig, rows: int, kept: int) -> int:
    """Operations of the products of a forward of ``rows`` rows, of which ``kept`` go on in the last layer."""
    square, inner = config.width**2, config.width * config.feed_forward
    before, behind = 3 * square, square + 2 * inner  # attention
    return 2 * (config.layers * rows * before + ((config.layers - 1) * rows + kept) * behind)
