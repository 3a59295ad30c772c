"""What a token store is made of: the settings, and the content of every file that is read; and what has changed since.

Reading every corpus to see that it is still the same takes minutes where there are hundreds of gigabytes. So digests
are kept beside the store, each with what the file system says of its file (size, inode, times of the last change of
content and of anything else). As long as all of that is the same, so is the content, and it is not read again; a
change within the file system's last tick would not show, so a file is remembered only once it has lain still.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data.config import DataConfig
from data.recipe import UserError
from data.sources import files_of
from data.store import sha256_of

STILL = 1.0  # seconds without a change


def inputs_of(config: DataConfig, *, read_all: bool = False) -> dict[str, Any]:
    """Everything that decides what is in a store: settings, and digests of all files that are read.

    ``read_all``: also of those that look as they did when they were last read.
    """
    settings = config.model_dump(mode="json", include=set(DataConfig.model_fields) - {"store"})
    files = _files(config)
    remembered = Path(config.store + ".inputs.json")
    return {"settings": settings, "files": _digests(files, remembered, read_all)}


def _files(config: DataConfig) -> list[Path]:
    """All files that are read, each once; UserError if one that the recipe names is not there."""
    paths = [path for corpus in config.corpora.values() for path in corpus.files()]
    if config.tokenizer.path is not None:
        paths.append(str(Path(config.tokenizer.path) / "tokenizer.json"))
    for lexicon in config.lexicons:
        if not Path(lexicon.path).is_file():
            raise UserError(f"lexicons: there is no file {lexicon.path}")
        paths.append(lexicon.path)
    return sorted({file for path in paths for file in files_of(path)})


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """What differs between the inputs of two stores, or between the settings of two runs, one line a leaf."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        found = [differences(old.get(key), new.get(key), f"{path}/{key}" if path else key) for key in keys]
        return [line for lines in found for line in lines]
    if old == new:
        return []
    path = path.removeprefix("settings/")
    if path.startswith("files/"):
        name = path.removeprefix("files/")
        return [
            f"{name}: " + ("was not used" if old is None else "is not used" if new is None else "has changed")
        ]
    return [f"{path.replace('/', '.')}: was {_short(old)}, is {_short(new)}"]


def _digests(files: Iterable[Path], remembered: Path, read_all: bool) -> dict[str, str]:
    known = {} if read_all else _read(remembered)
    digests, still = {}, {}
    for file in files:
        look = _look(file)
        entry = known.get(str(file))
        if entry is None or entry[1] != look:
            entry = [sha256_of(file), look]
        digests[str(file)] = entry[0]
        if look == _look(file) and time.time() - max(look[2:], default=0) / 1e9 > STILL:
            still[str(file)] = entry
    if still != known:
        _write(remembered, still)
    return digests


def _look(file: Path) -> list[int]:
    try:
        found = file.stat()
    except FileNotFoundError:
        return []
    return [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]


def _read(remembered: Path) -> dict[str, list[Any]]:
    try:
        known = json.loads(remembered.read_bytes())
        return {file: [str(digest), list(look)] for file, (digest, look) in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # none, or not ours: everything is read


def _write(remembered: Path, entries: dict[str, list[Any]]) -> None:
    try:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        remembered.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    except OSError:
        pass  # it only saves time


def _short(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
