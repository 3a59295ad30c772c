"""Hugging Face data sets: a folder of save_to_disk, or streamed from the hub (the door of datasets)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from data.config import CorpusConfig
from data.lines import Advance, damaged
from data.recipe import UserError
from data.sources.judge import Row, fields_of
from data.sources.parquet import (
    ROWS_AT_A_TIME,
    chosen_split,
    first_line,
    parquet_rows,
    parquet_schema,
    shards_of,
)
from data.sources.places import files_of
from data.sources.rejects import Where


def table_rows(config: CorpusConfig, advance: Advance) -> Iterator[tuple[Where, Row]]:
    """The rows of a data set: on the hub, of Parquet, or saved to disk."""
    if config.hub is not None:
        return _rows(config, f"hub:{config.hub}", _on_hub(config), 0, advance)
    if shards_of(config.path or ""):
        return parquet_rows(config, advance)
    saved = _saved(config)
    size = sum(file.stat().st_size for file in files_of(config.path or ""))
    each = size // max(len(saved), 1)
    return _rows(config, config.path or "", saved, each, advance)


def columns_of(config: CorpusConfig) -> list[str]:
    """The fields of a data set; none where only its rows would tell."""
    if config.hub is not None:
        features = _on_hub(config).features
        return list(features or ())
    if shards_of(config.path or ""):
        return list(parquet_schema(config).names)
    return list(_saved(config).column_names)


def _rows(
    config: CorpusConfig, name: str, opened: Any, each: int, advance: Advance
) -> Iterator[tuple[Where, Row]]:
    number = 0
    wanted = [field for field in opened.column_names or () if field in fields_of(config)]
    try:
        for batch in (
            (opened.select_columns(wanted) if wanted else opened).with_format("arrow").iter(ROWS_AT_A_TIME)
        ):
            for row in batch.to_pylist():
                number += 1
                yield Where(0, number, name), row
            advance(each * len(batch))
    except (OSError, pa.ArrowException, ValueError) as error:  # not a fault of the store that is written
        raise damaged(name, f"row {number}", error) from None


def _saved(config: CorpusConfig) -> Any:
    import datasets  # here, because it takes a second and few corpora need it

    path = config.path or ""
    try:
        opened = datasets.load_from_disk(path)
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: neither Parquet (a file, or a folder of *.parquet) nor a folder of "
            f"datasets.save_to_disk: {first_line(error)}"
        ) from None
    if isinstance(opened, datasets.DatasetDict):
        return opened[chosen_split(config, path, list(opened))]
    return opened


def _on_hub(config: CorpusConfig) -> Any:
    """The data set as a stream: nothing is kept on this machine."""
    import datasets

    name = config.hub or ""
    try:
        opened = datasets.load_dataset(name, config.subset, revision=config.revision, streaming=True)
        return opened[chosen_split(config, name, list(opened))]
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{name}: the data set can not be read from the hub: {first_line(error)}; check hub, revision, subset and"
            " the network, or fetch it where there is one (save_to_disk) and name the folder with 'path'"
        ) from None
