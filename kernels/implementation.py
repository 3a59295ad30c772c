"""The one rule that chooses which implementation of an operation runs.

Every operation offers some of ``reference`` (dense torch, the definition), ``streaming`` (torch, small in
memory), ``triton``, ``cuda``, ``native`` (the CUDA source built for the CPU by this machine's own compiler) and
``torch`` (a fused function of torch's own) under one public function. "auto" takes what the operation recommends
and says so once; an explicit choice is taken or refused, never replaced.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from importlib.util import find_spec
from typing import Final, Literal, get_args

import torch

Implementation = Literal["auto", "reference", "streaming", "triton", "cuda", "native", "torch"]

logger: Final = logging.getLogger(__name__)
_taken_by_auto: dict[str, str] = {}
_spoken: set[tuple[str, str]] = set()


class ImplementationUnavailable(RuntimeError):
    """The implementation that was asked for does not exist for this operation or on this machine."""


def choose(operation: str, requested: str, available: Collection[str], recommended: str) -> str:
    """Return the name of the implementation of ``operation`` that runs.

    ``available`` are the implementations that can run here, ``recommended`` the one of them that "auto"
    takes; the first time that it takes it, it is logged. Raises ValueError for a name that means
    nothing and ImplementationUnavailable, with the remedy, for one that can not run here.
    """
    if requested not in get_args(Implementation):
        known = ", ".join(get_args(Implementation))
        raise ValueError(f"{operation}: unknown implementation {requested!r}; choose one of {known}")
    if requested == "auto":
        _taken_by_auto[operation] = recommended
        if (operation, recommended) not in _spoken:
            _spoken.add((operation, recommended))
            logger.info("%s: auto took the %s implementation", operation, recommended)
        return recommended
    if requested not in available:
        raise ImplementationUnavailable(
            f"{operation}: the {requested!r} implementation is not available here; "
            f"choose one of {', '.join(sorted(available))}, or 'auto'"
        )
    return requested


def triton_runs_on(device: torch.device) -> bool:
    """Whether a Triton kernel can run on tensors of ``device``: on a GPU, elsewhere in Triton's interpreter only.

    Looks for the package without importing it. The interpreter is for tests: it is exact and very slow.
    """
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return (device.type == "cuda" or interpreted) and find_spec("triton") is not None


def taken_by_auto() -> dict[str, str]:
    """Return operation -> implementation for what "auto" has taken so far in this process."""
    return dict(_taken_by_auto)
