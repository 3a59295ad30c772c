"""One reader for each data rank: its first tensor rank makes the microbatches, the others receive the same bytes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from data.microbatch import Microbatch
from data.planner import Planner
from data.stream import BatchStream
from model.parallel.topology import Axis


class SharedBatches:
    """A BatchStream of the first tensor rank, for all ranks of ``tensor``.

    Every rank could make them, since they are a function of (seed, step). But making them costs processor time, of
    which a machine with eight tensor ranks would spend eight times as much, and sending them costs next to nothing:
    some hundred kilobytes a step.
    """

    def __init__(
        self, open_stream: Callable[[], BatchStream], planner: Planner, tensor: Axis, device: torch.device
    ) -> None:
        """``planner`` is the one of the stream that ``open_stream`` opens; it goes on on every rank alike."""
        self._planner = planner
        self._tensor = tensor
        self._device = device
        self._stream = open_stream() if tensor.rank == 0 else None

    def next(self) -> list[Microbatch]:
        """The microbatches of the next step; every rank must call."""
        sent: list[list[Microbatch] | None] = [None]
        if self._stream is None:
            self._planner.plan()
        else:
            sent = [self._stream.next()]
        if self._tensor.size > 1:
            dist.broadcast_object_list(sent, group=self._tensor.group, group_src=0, device=self._device)
        assert sent[0] is not None
        return sent[0]

    def close(self) -> None:
        """End the worker processes of the reader."""
        if self._stream is not None:
            self._stream.close()
