"""Parquet: a file, a folder of shards as the Hugging Face hub writes them, or a pattern."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from data.config import CorpusConfig
from data.lines import Advance, damaged
from data.recipe import UserError
from data.sources.judge import Row, fields_of
from data.sources.places import files_of, is_pattern, near
from data.sources.rejects import Where

ROWS_AT_A_TIME = 1024
# train-00000-of-00002.parquet, or train.parquet
SHARD = re.compile(r"(?P<split>.+)-\d+-of-\d+|(?P<whole>train|validation|valid|dev|test)")


def shards_of(path: str) -> list[Path]:
    """The Parquet files at a path of the recipe; none if it is a folder of another kind."""
    place = Path(path)
    return sorted(place.glob("*.parquet")) if place.is_dir() else files_of(path)


def parquet_schema(config: CorpusConfig) -> pa.Schema:
    """The columns of a corpus; UserError if a shard lacks what the recipe names and another has."""
    shards = _chosen(config)
    schema: pa.Schema = None
    for shard in shards:
        try:
            found = pyarrow.parquet.read_schema(shard)
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{shard}: neither Parquet (a file, or a folder of *.parquet) nor a folder of "
                f"datasets.save_to_disk: {first_line(error)}"
            ) from None
        schema = found if schema is None else schema
        missing = set(schema.names) & set(fields_of(config)) - set(found.names)
        if missing:
            raise UserError(f"{shard}: has no field {', '.join(sorted(missing))}, unlike {shards[0]}")
    return schema


def parquet_rows(config: CorpusConfig, advance: Advance) -> Iterator[tuple[Where, Row]]:
    """The rows of every shard, located by shard and row."""
    for part, shard in enumerate(_chosen(config)):
        number = 0
        try:
            with pyarrow.parquet.ParquetFile(shard) as parquet:
                wanted = [name for name in parquet.schema_arrow.names if name in fields_of(config)]
                size, rows = shard.stat().st_size, max(parquet.metadata.num_rows, 1)
                for batch in parquet.iter_batches(batch_size=ROWS_AT_A_TIME, columns=wanted):
                    for row in batch.to_pylist():
                        number += 1
                        yield Where(part, number, str(shard)), row
                    advance(size * len(batch) // rows)
        except (OSError, pa.ArrowException, ValueError) as error:  # not a fault of the store that is written
            raise damaged(str(shard), f"row {number}", error) from None


def _chosen(config: CorpusConfig) -> list[Path]:
    """The shards of the split that is meant; UserError if the recipe must name one and does not."""
    path = config.path or ""
    shards = shards_of(path)
    splits = sorted({_split_of(shard) for shard in shards} - {""})
    several = is_pattern(path) or Path(path).is_dir()
    if several and (config.split is not None or len(splits) > 1):
        split = chosen_split(config, path, splits)
        shards = [shard for shard in shards if _split_of(shard) == split]
    return shards


def _split_of(shard: Path) -> str:
    """The split in the name of a Parquet file, as the Hugging Face hub writes it; "" if it names none."""
    found = SHARD.fullmatch(shard.stem)
    return (found["split"] or found["whole"]) if found else ""


def chosen_split(config: CorpusConfig, path: str, splits: Sequence[str]) -> str:
    """The split to read of several; UserError if the recipe must name one and does not."""
    if config.split is None and len(splits) == 1:
        return splits[0]
    if config.split is None or config.split not in splits:
        given = f"there is no split {config.split!r}" if config.split else "the key 'split' is needed"
        listed = f"it has the splits {', '.join(splits)}" if splits else "its files name no splits"
        raise UserError(f"{path}: {given}; {listed}{near(config.split, splits)}")
    return config.split


def first_line(error: Exception) -> str:
    """What an exception of a library says, in one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
