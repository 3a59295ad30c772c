"""How much memory the vocabulary loss really takes, by the peak of a process of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch.distributed import ProcessGroup

from kernels.vocabulary import vocabulary_loss
from kernels.vocabulary.tiles import KEPT_BYTES, TILE_BYTES
from tests.ranks import run_on_ranks

MIB = 2**20


def status(name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def extra_peak(positions: int, vocabulary: int, dtype: torch.dtype, implementation: str) -> int:
    """Bytes that forward and backward need at their peak, the gradients included."""

    def of_rank(_: ProcessGroup) -> int:
        for rows in (8, positions):  # the first time also warms up
            hidden = torch.randn(rows, 32).to(dtype).requires_grad_()
            table = torch.randn(vocabulary, 32).to(dtype).requires_grad_()
            bias = torch.zeros(vocabulary, dtype=dtype).requires_grad_()
            targets = torch.randint(vocabulary, (rows,))
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            before = status("VmRSS")
            vocabulary_loss(hidden, table, bias, targets, implementation=implementation).total.backward()
        return status("VmHWM") - before

    return run_on_ranks(of_rank, 1)[0]


@pytest.mark.ranks
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks Linux for the peak")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_beyond_what_is_kept_memory_does_not_grow_with_the_batch(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Logits of 195 MiB in float32, more than is kept; dense torch holds them several times over.
    positions, vocabulary = 1024, 50_002
    monkeypatch.setitem(KEPT_BYTES, "cpu", 64 * MIB)
    # A processor without bfloat16 products makes copies of a tile in float32: twice its bytes.
    budget = KEPT_BYTES["cpu"] + TILE_BYTES["cpu"] + (2 * TILE_BYTES["cpu"] if dtype == torch.bfloat16 else 0)
    once = extra_peak(positions, vocabulary, dtype, "streaming")
    assert once <= budget + 30 * MIB
    assert extra_peak(2 * positions, vocabulary, dtype, "streaming") <= budget + 30 * MIB
    assert extra_peak(positions, vocabulary, dtype, "reference") > 2 * budget
