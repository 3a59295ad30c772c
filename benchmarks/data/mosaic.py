"""MosaicML streaming: a local, shuffled StreamingDataset of MDS shards, with the collator of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.data.contestants import texts_of
from benchmarks.data.hugging_face import loaded


def batches(folder: Path, batch: int) -> Iterator[int]:
    """Tokens of each batch."""
    import numpy as np
    from streaming import MDSWriter, StreamingDataset

    class Texts(StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            found = super().__getitem__(at)
            return {name: column.tolist() for name, column in found.items()}

    ids, ends = texts_of(folder)
    place = folder / "streaming"
    columns = {"input_ids": "ndarray:int32", "special_tokens_mask": "ndarray:int8"}
    with MDSWriter(out=str(place), columns=columns) as writer:
        for part in np.split(ids, ends[:-1]):
            specials = np.isin(part, (0, 2)).astype(np.int8)
            writer.write({"input_ids": part, "special_tokens_mask": specials})
    dataset = Texts(local=str(place), shuffle=True, batch_size=batch)
    return loaded(dataset, folder, batch)
