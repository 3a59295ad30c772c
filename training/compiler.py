"""torch's compiler, which a run does without: two seconds of a start that are put off until something is compiled."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

_NAME = "torch._dynamo"


def put_off_compiler() -> None:
    """Leave the import of torch's compiler to the first who needs it.

    torch's optimizers and DeepSpeed's hooks import it, only to tell it that they are not to be compiled. Until it is
    there that has no meaning, and what stands in for it takes note of nothing. Whatever else is asked of it imports
    it.
    """
    if _NAME not in sys.modules:
        sys.modules[_NAME] = torch._dynamo = _PutOff(_NAME)


class _PutOff(ModuleType):
    """Stands in for the compiler's front end."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.util.find_spec(name)

    @staticmethod
    def disable(fn: Callable[..., Any] | None = None, *_: object, **__: object) -> Callable[..., Any]:
        """What is not compiled stays as it is; without a function, as a decorator."""
        return fn if fn is not None else lambda function: function

    @staticmethod
    def graph_break(*_: object, **__: object) -> None:
        """Nothing is being traced."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(_NAME) is self:
            del sys.modules[_NAME], torch._dynamo
        return getattr(importlib.import_module(_NAME), name)
