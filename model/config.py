"""EncoderConfig: the shape of the encoder, checked before torch is imported."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class EncoderConfig(BaseModel):
    """Shape of an encoder of the XLM-R family (post-norm, learned positions, exact GELU, tied output table).

    The defaults are those of XLM-R (Conneau et al. 2020). ``positions`` counts rows of the position table: as
    in XLM-R the first ``pad_id + 1`` rows are never used, so the longest document has ``longest_document``
    tokens.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    vocabulary_size: int = Field(ge=6, description="rows of the token table; ids are those of the tokenizer")
    layers: int = Field(ge=1)
    width: int = Field(ge=1, description="length of a token's hidden vector")
    heads: int = Field(ge=1, description="attention heads; divides width")
    feed_forward: int = Field(ge=1, description="inner width of the feed-forward block, usually 4 * width")
    positions: int = Field(
        default=514, description="rows of the position table; positions start at pad_id + 1"
    )
    layer_norm_eps: float = Field(default=1e-5, gt=0)
    initializer_std: float = Field(default=0.02, gt=0)
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="on embeddings and on the output of each block"
    )
    pad_id: int = Field(default=1, ge=0)
    languages: int = Field(
        default=0, ge=0, description="rows of the table of languages, which training alone has; 0: no table"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> EncoderConfig:
        if self.width % self.heads:
            near = [n for n in range(1, self.width + 1) if self.width % n == 0]
            near = sorted(sorted(near, key=lambda n: abs(n - self.heads))[:3])
            choices = ", ".join(map(str, near))
            raise ValueError(
                f"width {self.width} is not divisible by {self.heads} heads; heads could be {choices}"
            )
        if self.positions < self.pad_id + 2:
            raise ValueError(
                f"positions {self.positions} leaves no room: the first {self.pad_id + 1} rows are never "
                f"used, so a document of n tokens needs positions = n + {self.pad_id + 1}"
            )
        if self.pad_id >= self.vocabulary_size:
            raise ValueError(f"pad_id {self.pad_id} is not an id of a vocabulary of {self.vocabulary_size}")
        return self

    @property
    def head_width(self) -> int:
        """Length of one head's query, key and value vectors."""
        return self.width // self.heads

    def shared_by(self, tensor_ranks: int) -> list[str]:
        """Why the encoder can not be cut over so many tensor ranks, with what could be; empty if it can."""
        fits = [n for n in range(1, self.heads + 1) if self.heads % n == self.feed_forward % n == 0]
        return [
            f"{name} {getattr(self, name)} can not be shared equally by {tensor_ranks} tensor ranks; this encoder"
            f" could be by {', '.join(map(str, fits))}"
            for name in ("heads", "feed_forward")
            if getattr(self, name) % tensor_ranks
        ]

    @property
    def longest_document(self) -> int:
        """Most tokens a document may have, special tokens included."""
        return self.positions - self.pad_id - 1
