"""Bytes that the forward of a microbatch leaves for its backward, part by part, by arithmetic.

Of a layer (R rows, D width, F inner width, t tensor ranks, own rows R / t with sequence parallelism, else R)::

    attention     what projection read (own, D), queries, keys and values 3 (R, D / t), their output (R, D / t), and
                  the weights of short documents on a CPU, a logarithm of each row and head elsewhere
    feed-forward  what inner read (own, D), before and after GELU 2 (R, F / t)
    norms         two sums (own, D), and what two norms keep of each row

Of the last layer only what is read afterwards goes on behind attention (P rows), unless own rows are a part of R.
With activation checkpointing a layer leaves its input (own, D), and one layer at a time is computed again. Without
dropout 16 D R elements a layer at t = 1 and F = 4 D, as Korthikanti et al. (2022) count them for queries, keys and
values that are one tensor.
"""

from __future__ import annotations

from typing import NamedTuple

from model.config import EncoderConfig

# As kernels/vocabulary/tiles.py has them.
_TILE_ROWS = 8192
_TILE_BYTES = {"cpu": 16 * 2**20, "cuda": 128 * 2**20}
_KEPT_BYTES = {"cpu": 168 * 2**20, "cuda": 1024 * 2**20}
_ALIGNED = 64
_NUMBER = 8  # bytes of an id or a place
# Rows and columns of a tile of similarities, and bytes of those that are kept: kernels/alignment/streaming.py on a CPU,
# fused_triton.py on a GPU.
_SIMILARITIES = {"cpu": 1024, "cuda": 8192}
_KEPT_SIMILARITIES = {"cpu": 0, "cuda": 512 * 2**20}


class Contents(NamedTuple):
    """What stands in a microbatch."""

    tokens: int  # T
    rows: int  # R: tokens without the tail, and what the layout fills up
    predicted: int
    sentence_tokens: int
    sentence_documents: int
    pairs: int
    squares: int = 0  # on a CPU: sum of L * L over the padded documents of at most 256 tokens
    long_rows: int = 0  # rows of longer ones, if there are any; torch's kernel for attention then takes all
    generated: int = 0  # tokens of the documents in which pseudo tokens are written beforehand
    readers: bool = False  # on a GPU: some documents have readers, and rows are copied for two calls

    @property
    def read(self) -> int:
        """P: rows whose last hidden states are read."""
        return self.predicted + self.sentence_tokens

    @property
    def written(self) -> int:
        """Pseudo tokens: about a third of a document in which they are written."""
        return self.generated // 3


class Cutting(NamedTuple):
    """How the model lies over tensor ranks, and how it is run."""

    tensor: int = 1
    sequence: bool = False
    checkpointing: bool = False
    device: str = "cpu"
    loss: str = "auto"  # implementation of the vocabulary's

    @property
    def spreads_rows(self) -> bool:
        """Whether each tensor rank has its own rows between the layers."""
        return self.sequence and self.tensor > 1

    def kept(self, rows: int, read: int) -> int:
        """Of ``rows`` those that go on behind the last layer's attention: what is ``read``, unless they are spread."""
        return rows if self.spreads_rows else read


def activations(config: EncoderConfig, contents: Contents, cutting: Cutting, width: int) -> dict[str, int]:
    """Bytes of each part, with numbers of ``width`` bytes."""
    own = _own(contents.rows, cutting)
    of_dropout = own * config.width * _of_dropout(config, cutting, width)
    of_embedding = own * config.width * width * (2 if config.languages else 1) + of_dropout
    of_embedding += _statistics(own, cutting, width)
    parts = {"embedding": of_embedding + (3 * contents.rows + contents.tokens) * _NUMBER}
    layer = _layer(config, contents, cutting, width, contents.rows)
    if cutting.checkpointing:
        parts["layers' inputs"] = config.layers * own * config.width * width
        parts["a layer, again"] = sum(layer.values())
    else:
        last = _layer(config, contents, cutting, width, cutting.kept(contents.rows, contents.read))
        parts |= {name: (config.layers - 1) * size + last[name] for name, size in layer.items()}
    return parts | _heads(config, contents, cutting, width)


def _layer(
    config: EncoderConfig, contents: Contents, cutting: Cutting, width: int, kept: int
) -> dict[str, int]:
    """Of a layer of which ``kept`` rows go on behind attention."""
    own, own_kept = _own(contents.rows, cutting), _own(kept, cutting)
    of_norm = own_kept * config.width * (width + _of_dropout(config, cutting, width))
    return {
        "attention": own * config.width * width + _attention(config, contents, cutting, width, kept),
        "feed-forward": (own_kept * config.width + 2 * kept * config.feed_forward // cutting.tensor) * width,
        "norms, dropout": 2 * (of_norm + _statistics(own_kept, cutting, width)),
    }


def _own(rows: int, cutting: Cutting) -> int:
    return -(-rows // cutting.tensor) if cutting.spreads_rows else rows


def _statistics(rows: int, cutting: Cutting, width: int) -> int:
    """Mean and deviation of the rows of a norm."""
    return 2 * rows * (4 if cutting.device == "cuda" else width)


def _of_dropout(config: EncoderConfig, cutting: Cutting, width: int) -> int:
    """Bytes of an element's mask."""
    if not config.dropout:
        return 0
    return width if cutting.device == "cpu" or cutting.sequence else 1


def _attention(config: EncoderConfig, contents: Contents, cutting: Cutting, width: int, kept: int) -> int:
    """Queries, keys, values, weights, and what the output layer reads."""
    rows, heads, tensor = contents.rows, config.heads // cutting.tensor, cutting.tensor
    of_width = rows * config.width // tensor * width
    picked = kept * config.width // tensor * width
    of_places = kept * _NUMBER if kept < rows else 0
    if cutting.device == "cuda":
        # What the kernel gives is kept, and read as it is where no row was copied for it and none is left out.
        copied = picked if contents.readers or kept < rows else 0
        return (5 if contents.readers else 4) * of_width + copied + of_places + rows * heads * 4
    weights = contents.squares * heads * width
    if not contents.long_rows:
        return 3 * of_width + picked + of_places + weights
    # The projection stays as a whole beside copies of short documents, outputs beside what joins them.
    short = (rows - contents.long_rows) * config.width // tensor * width
    return 4 * of_width + picked + of_places + 3 * short + weights + contents.long_rows * heads * 4


def _heads(config: EncoderConfig, contents: Contents, cutting: Cutting, width: int) -> dict[str, int]:
    read = contents.predicted * config.width * width
    sentences = contents.sentence_tokens * config.width * 4
    if width != 4:  # a copy, and all that is read is one tensor
        sentences += contents.sentence_tokens * config.width * width
    vectors = (3 * contents.sentence_documents + 4 * contents.pairs) * config.width * 4
    return {
        "masked head": 4 * read + contents.predicted * (2 * width + 4 * _NUMBER + 3 * 4),
        "vocabulary loss": _of_the_vocabulary(config, contents, cutting, width),
        "sentence vectors": sentences + vectors,
    }


def _of_the_vocabulary(config: EncoderConfig, contents: Contents, cutting: Cutting, width: int) -> int:
    """Bytes that the vocabulary loss holds until its backward: the logits, or gradients of the table and its bias."""
    own = -(-config.vocabulary_size // cutting.tensor)
    if cutting.loss == "reference":  # every rank the whole vocabulary
        gathered = config.vocabulary_size * (config.width + 1) * width if cutting.tensor > 1 else 0
        return contents.predicted * config.vocabulary_size * 4 + gathered
    return own * (config.width + 1) * width


def _tiles(ids: int, predicted: int, cutting: Cutting, width: int) -> tuple[int, int]:
    """Bytes of a tile of logits, and how many there are."""
    rows = max(1, min(predicted, _TILE_ROWS))
    columns = max(1, min(ids, _TILE_BYTES[cutting.device] // (rows * width)))
    columns -= columns % _ALIGNED if columns > _ALIGNED else 0
    return rows * columns * width, -(-predicted // rows) * -(-ids // columns)


def loss_temporaries(
    config: EncoderConfig, contents: Contents, cutting: Cutting, width: int, kept: bool
) -> dict[str, int]:
    """Bytes of what the masked losses and the backward make on the way, as if all of it were alive at once.

    The gradient of the token table is that of the head, which is held from the forward on but for the dense form,
    until, after all layers, that of the embedding joins it, on a CPU in its place (model/tied.py). ``kept``: what a
    backward makes is the gradient that is counted among the states, as at stages 0 and 1 with one microbatch.
    """
    made = 1 if cutting.device == "cpu" and width >= 4 else 2
    gradients = max(0, made - kept - (cutting.loss != "reference"))
    own = -(-config.vocabulary_size // cutting.tensor)
    tile, tiles = _tiles(own, contents.predicted, cutting, width)
    tiles_kept = min(tiles, _KEPT_BYTES[cutting.device] // tile)
    return {
        "table's gradient": own * config.width * width * gradients,
        "logits": (tiles_kept + 1) * tile + contents.predicted * config.width * (width + 4),
        "gradient of the rows": 2
        * contents.rows
        * config.width
        * width,  # what a layer passes on, and its part of it
    }


def pool(config: EncoderConfig, contents: Contents, device: str, microbatches: int, data: int) -> int:
    """Bytes of the alignment pool of so many microbatches on each of ``data`` ranks.

    Vectors, as they come and put together; a tile of similarities, and one of what they are multiplied with after;
    on a GPU all of them where they are few.
    """
    own, every = contents.pairs * microbatches, contents.pairs * microbatches * data
    side = _SIMILARITIES[device]
    tiles = 2 * 4 * (side * side if device == "cpu" else min(own, side) * min(every, side))
    kept = 4 * own * every * min(data, 2)  # over ranks own queries, then own keys
    vectors = 2 * 2 * every * config.width * 4
    return (vectors + tiles + kept * (kept <= _KEPT_SIMILARITIES[device])) * (contents.pairs > 0)
