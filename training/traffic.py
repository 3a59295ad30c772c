"""Bytes that a rank sends in a step, and in how many messages, by arithmetic.

As a ring does it: of n bytes a gather or a reduce-scatter over k ranks sends n (k - 1) / k from each of them, an
all-reduce both of them. What is smaller than a row of activations (counts, norms, flags) is left out.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import NamedTuple

from model.config import EncoderConfig
from model.parallel.plan import ON_OWN_ROWS
from training.activation_sizes import Contents, Cutting
from training.sizes import Shapes, Zero, elements


class Passes(NamedTuple):
    """How often a rank runs the model in a step."""

    microbatches: int
    pool: bool = False  # before them, without gradient, over the sentences: the alignment pool's first pass
    generation: bool = False  # before them, without gradient: pseudo tokens


def of_zero(shapes: Shapes, zero: Zero, data: int, passes: Passes) -> dict[str, int]:
    """Bytes sent to other data ranks for weights and gradients.

    At stage 3 at most: what stays gathered (stage3_max_live_parameters) is not gathered again.
    """
    if data == 1:
        return {}
    sizes = [elements(shape) for shape in shapes.values()]
    whole = sum(sizes)
    if zero.stage == 0:
        return {"gradients, all-reduce": 2 * _ring(whole * zero.weight, data)}
    if zero.stage < 3:
        often = 1 if zero.stage == 1 else passes.microbatches
        return {
            "gradients, all-reduce": often * 2 * _ring(whole * zero.weight, data),
            "weights, gather": _ring(whole * zero.weight, data),
        }
    stays = sum(size for size in sizes if size <= zero.persists)
    forwards = passes.microbatches * (2 + passes.pool + passes.generation)  # the backward gathers as well
    return {
        "gradients, reduce-scatter": passes.microbatches * _ring(whole * zero.weight, data),
        "weights, gather (at most)": forwards * _ring((whole - stays) * zero.weight, data)
        + _ring(stays * zero.weight, data),
    }


def messages_of_zero(shapes: Shapes, zero: Zero, data: int, passes: Passes) -> int:
    """How often a rank waits for other data ranks; at stage 3 at most: small parameters are gathered together."""
    if data == 1:
        return 0
    sizes = [elements(shape) for shape in shapes.values()]
    buckets = -(-sum(sizes) // zero.bucket)
    if zero.stage == 0:
        return buckets
    if zero.stage < 3:
        return (1 if zero.stage == 1 else passes.microbatches) * buckets + 1
    gathered = sum(size > zero.persists for size in sizes)
    return passes.microbatches * (buckets + (2 + passes.pool + passes.generation) * gathered) + 1


def messages_of_tensor(config: EncoderConfig, cutting: Cutting, passes: Passes) -> int:
    """How often a rank waits for other tensor ranks: twice a layer in each direction, and with what is run before."""
    if cutting.tensor == 1:
        return 0
    forwards = 2 + cutting.checkpointing + passes.pool + passes.generation
    return passes.microbatches * 2 * config.layers * forwards * (1 + cutting.sequence)


def of_tensor(
    config: EncoderConfig, shapes: Shapes, contents: Contents, cutting: Cutting, width: int, passes: Passes
) -> dict[str, int]:
    """Bytes sent to other tensor ranks: sums of activations after, and of their gradients before, what is cut.

    Sequence parallelism sends the same in two halves, a gather before and a reduce-scatter after, and in the backward
    gathers once more what it did not keep.
    """
    ranks = cutting.tensor
    if ranks == 1:
        return {}
    stream = _ring(contents.rows * config.width * width, ranks)  # one gather, or half of an all-reduce
    # Of the last layer only the rows that are read are summed; before its attention all of them, in the backward.
    last = stream * cutting.kept(contents.rows, contents.read) // max(contents.rows, 1)
    sums = 2 * (config.layers - 1)  # of a forward: after attention and after feed-forward
    forward = 2 * (sums * stream + 2 * last)
    backward = 2 * (sums * stream + stream + last)
    if cutting.sequence:
        backward += (sums + 2) * stream
    if cutting.checkpointing:
        backward += forward
    ends = (
        2 + cutting.sequence
    )  # the embedding; with sequence also its backward, and the rows that are joined again
    # Beforehand, without gradient; of what is written the last layer goes on with the placeholders alone.
    of_row = stream / max(contents.rows, 1)
    generated, pooled = contents.generated * passes.generation, contents.sentence_tokens * passes.pool
    written = cutting.kept(generated, contents.written * passes.generation)
    embedded_before = int(of_row * (generated + pooled))
    forward_before = int(2 * of_row * (sums * (generated + pooled) + 2 * (written + pooled)))
    of_loss = _ring(3 * contents.predicted * 4 * ranks, ranks) + 2 * _ring(
        contents.predicted * config.width * 4, ranks
    )
    found = {
        "layers": forward + backward + forward_before,
        "embedding": ends * stream + 2 * embedded_before,
        "vocabulary loss": of_loss,
    }
    if cutting.sequence:
        shared = [
            elements(shape)
            for name, shape in shapes.items()
            if any(fnmatchcase(name, pattern) for pattern in ON_OWN_ROWS)
        ]
        found["gradients of what is whole"] = 2 * _ring(sum(shared) * width, ranks)
    return {name: passes.microbatches * size for name, size in found.items()}


def of_pool(config: EncoderConfig, contents: Contents, data: int, passes: Passes) -> dict[str, int]:
    """Bytes sent to other data ranks for the alignment pool: both sides of every pair, and six numbers of it."""
    if data == 1 or not contents.pairs:
        return {}
    pairs = contents.pairs * passes.microbatches
    return {"alignment pool, gather": _ring(pairs * 2 * (config.width * 4 + 2 * 8 + 3 * 4) * data, data)}


def _ring(size: int, ranks: int) -> int:
    """Bytes that a rank sends when ``size`` bytes, over all ranks, are gathered or reduce-scattered."""
    return size * (ranks - 1) // ranks
