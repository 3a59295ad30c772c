"""Exporting holds the model once: measured in a process of its own, on a model of some hundred MB."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import EncoderConfig
from model.huggingface import load_weights, read_config
from model.parallel.topology import Axis
from model.pretraining import PretrainingModel
from model.tensor_file import Sealed
from tests.training.runs import WITHOUT_EVALUATION, train
from training import checkpoint
from training.fragments import Cut
from training.optimizer_state import STATES
from training.shards import Held, write_shard

MB = 2**20
SHAPE = EncoderConfig(vocabulary_size=200_000, layers=6, width=768, heads=12, feed_forward=3072, positions=66)
# The program's own peak, measured by the system; nothing is left out, neither torch nor transformers. Not getrusage's:
# a process begins there with the peak of the one that started it.
MEASURED = """
import sys
from pathlib import Path
from training.export import main
status = main()
lines = Path("/proc/self/status").read_text().splitlines()
print("peak", next(line.split()[1] for line in lines if line.startswith("VmHWM")))
sys.exit(status)
"""


class Saver:
    """Saves a model as one rank would have; for the moments the weights again."""

    stage = 3

    class world:
        first, process, processes, tensor = True, 0, 1, Axis()

    def __init__(self, model: PretrainingModel) -> None:
        self.model = model
        self.cuts = {name: Cut(tuple(parameter.shape)) for name, parameter in model.named_parameters()}

    def counts(self) -> dict[str, int]:
        return {"updates": 1}

    def save(self, path: Path) -> Sealed:
        return write_shard(
            path,
            (
                Held(name, self.cuts[name], 0, dict.fromkeys(STATES, parameter.detach().flatten()))
                for name, parameter in self.model.named_parameters()
            ),
        )


@pytest.mark.slow
@pytest.mark.ranks
def test_the_peak_is_below_the_model_its_largest_tensor_and_300_mb(
    small_recipe: Path, tmp_path: Path
) -> None:
    train(small_recipe, tmp_path, "steps=1", "optimizer.warmup_steps=0", WITHOUT_EVALUATION)
    run = tmp_path / "small"
    torch.manual_seed(0)
    model = PretrainingModel(SHAPE)
    state = checkpoint.find(run).run_state()
    shutil.rmtree(run / "checkpoints")
    engine: Any = Saver(model)
    checkpoint.save(engine, run / "checkpoints", 1, {**state, "encoder": SHAPE.model_dump()}, 1)
    sizes = [parameter.numel() * 4 / MB for parameter in model.parameters()]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, run, tmp_path / "out"], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    peak = int(done.stdout.split()[-1]) / 1024
    print(f"peak {peak:.0f} MB, model {sum(sizes):.0f}, largest {max(sizes):.0f}", done.stdout)
    assert sum(sizes) > 400 and peak < sum(sizes) + max(sizes) + 300
    written = load_weights(tmp_path / "out", read_config(tmp_path / "out"))
    for name, tensor in model.named_parameters():
        if name in written:
            assert torch.equal(written[name], tensor), name
