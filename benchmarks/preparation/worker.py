"""One contestant in a process of its own: python -m benchmarks.preparation.worker NAME FOLDER prints a line of JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from benchmarks.preparation.contestants import CONTESTANTS


def main() -> int:
    """Prepare once; imports are left out of the time."""
    import datasets  # noqa: F401
    import transformers  # noqa: F401

    from benchmarks.preparation.builder import builder

    name, folder = sys.argv[1:]
    builder()
    began = time.process_time()
    tokens = CONTESTANTS[name](Path(folder))
    print(json.dumps({"tokens": tokens, "seconds": time.process_time() - began}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
