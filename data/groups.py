"""Groups: which texts of a store may mean the same, so that none is taken for another's negative.

Translations of each other mean the same, and so do equal texts, in whatever corpus and language they stand. A group
is all that these two relations connect: rows that share a text in any language are one group.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def number_groups(texts: Sequence[np.ndarray], joined: Sequence[np.ndarray]) -> None:
    """Replace the numbers of the texts of some corpora by those of their groups, in place.

    ``texts``: of each corpus (S,) uint64, equal for equal texts. ``joined``: of each corpus (S,) bool, whether a
    segment means the same as the one before it. A group has the smallest number of its texts, so a text that nothing
    is connected with keeps its own. Takes about 60 bytes of memory a segment: the only thing in the preparation that
    grows with the corpora.
    """
    distinct, nodes = np.unique(np.concatenate(texts), return_inverse=True)
    later = np.flatnonzero(np.concatenate(joined))
    edges = coo_array(
        (np.ones(len(later), dtype=bool), (nodes[later - 1], nodes[later])), shape=(len(distinct),) * 2
    )
    _, component = connected_components(edges, directed=False)
    _, smallest = np.unique(component, return_index=True)  # ``distinct`` is sorted
    groups = distinct[smallest[component]][nodes]
    start = 0
    for numbers in texts:
        numbers[:] = groups[start : start + len(numbers)]
        start += len(numbers)
