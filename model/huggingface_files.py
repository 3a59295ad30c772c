"""What lies in a model folder of Hugging Face: its JSON, and the tensors of its safetensors, read when asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from model.huggingface_names import ModelError
from model.tensor_file import TensorFile, TensorFileError


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds; ModelError if it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist; give the folder of a Hugging Face model") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} can not be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is not a JSON object")
    return content


class Tensors(Mapping[str, Tensor]):
    """Every weight in the folder's safetensors, in one file or in shards; read when asked for."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, TensorFile] = {}
        for shard in _shards(folder):
            try:
                file = TensorFile(folder / shard)
            except TensorFileError as error:
                raise ModelError(
                    f"{shard} can not be read: {error}; copy the model's folder again"
                ) from error
            self._files |= dict.fromkeys(file.entries, file)

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self._files[name].read(name)
        except (OSError, TensorFileError) as error:
            raise ModelError(f"{name} can not be read: {error}; copy the model's folder again") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _shards(folder: Path) -> list[str]:
    """The names of the folder's safetensors files."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = sorted(set(read_json(index).get("weight_map", {}).values()))
        strange = [shard for shard in shards if Path(shard).name != shard]
        if strange:
            raise ModelError(f"{index.name} names {strange[0]}, which is no file of the folder")
        return shards
    if (folder / "model.safetensors").exists():
        return ["model.safetensors"]
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        raise ModelError(
            f"it holds its weights as {pickles[0]}, which can run code when it is opened and is not "
            "read; convert it where you trust it: AutoModel.from_pretrained(F).save_pretrained(F) "
            "writes model.safetensors"
        )
    raise ModelError("it holds no model.safetensors; give the folder of a Hugging Face model")
