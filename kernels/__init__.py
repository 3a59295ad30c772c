"""Losses that would otherwise fill the memory, each beside the dense definition it is held to.

transformers probes a Hugging Face package that is also called ``kernels`` and, where that one is not
installed, finds this one: it imports it and looks for a version. So this module stays cheap, carries no
version, and answers an unknown name in a way that a probe understands and a person can act on.
"""

from importlib.util import find_spec
from typing import NoReturn


def __getattr__(name: str) -> NoReturn:
    """Refuse a name that is not here: a probe's dunder as usual, anything else with the remedy.

    A module of this package is refused as usual too: the import system then loads it.
    """
    if (name.startswith("__") and name.endswith("__")) or find_spec(f"kernels.{name}") is not None:
        raise AttributeError(f"module 'kernels' has no attribute {name!r}")
    raise ImportError(
        f"cannot import name {name!r} from 'kernels': this is Calque's folder of losses, not the Hugging "
        "Face package of that name. Where that one is meant, run from another folder; where transformers "
        "asks for it, uninstall it (pip uninstall kernels): Calque does not need it."
    )
