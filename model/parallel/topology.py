"""Where a rank stands: tensor ranks that share one model, times data ranks that share the data.

    world rank = data rank * tensor ranks + tensor rank

so that the tensor ranks of a model are neighbours, on one machine where they fit: they talk in every layer, the
data ranks a few times a step.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.distributed import ProcessGroup


@dataclass(frozen=True, eq=False)
class Axis:
    """Ranks along one direction, and which of them this process is. Without ranks beside it, it is alone."""

    rank: int = 0
    size: int = 1
    group: ProcessGroup | None = None  # None where no process group was started

    @classmethod
    def of(cls, group: ProcessGroup) -> Axis:
        """The axis of the ranks in ``group``."""
        return cls(group.rank(), group.size(), group)


@dataclass(frozen=True, eq=False)
class Topology:
    """The two axes; also what DeepSpeed calls an ``mpu`` and asks by the names below ("model" is the tensor axis)."""

    tensor: Axis = Axis()
    data: Axis = Axis()

    @property
    def first(self) -> bool:
        """Whether this rank writes what only one may write."""
        return self.tensor.rank == self.data.rank == 0

    def get_data_parallel_rank(self) -> int:
        """Of this process, on the axis that ZeRO shards over."""
        return self.data.rank

    def get_data_parallel_world_size(self) -> int:
        """How many ranks ZeRO shards over."""
        return self.data.size

    def get_data_parallel_group(self) -> ProcessGroup | None:
        """The ranks that ZeRO shards over."""
        return self.data.group

    def get_model_parallel_rank(self) -> int:
        """Of this process, on the axis that the model is cut over."""
        return self.tensor.rank

    def get_model_parallel_world_size(self) -> int:
        """How many ranks the model is cut over."""
        return self.tensor.size

    def get_model_parallel_group(self) -> ProcessGroup | None:
        """The ranks that the model is cut over."""
        return self.tensor.group

    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_group = get_model_parallel_group
