"""Where Megatron-LM's way writes documents to: megatron-core's indexed dataset, or the same few calls."""

from __future__ import annotations

from typing import Any

import numpy as np


class Builder:
    """What megatron-core's IndexedDatasetBuilder does with a document, where that package is not installed."""

    def __init__(self, path: str, dtype: type) -> None:
        self._file, self._dtype = open(path, "wb"), dtype
        self._lengths: list[int] = []
        self._documents = [0]

    def add_document(self, ids: list[int], lengths: list[int]) -> None:
        """Write the ids of a document of so many ``lengths``."""
        self._file.write(np.array(ids, dtype=self._dtype).tobytes())
        self._lengths.extend(lengths)
        self._documents.append(len(self._lengths))

    def finalize(self, path: str) -> None:
        """Close the ids, and write where documents begin to ``path``."""
        self._file.close()
        np.savez(path, np.array(self._lengths, np.int32), np.array(self._documents, np.int64))


def builder() -> Any:
    """megatron-core's builder, or ours like it."""
    try:
        from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
    except ImportError:
        return Builder
    return IndexedDatasetBuilder
