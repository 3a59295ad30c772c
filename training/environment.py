"""What has to stand in the process's environment before torch is imported, however the run was launched.

``deepspeed``, ``torchrun``, ``srun`` and plain ``python`` each set a different part of it.
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
import warnings

from data.recipe import UserError

_RENDEZVOUS = ("LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def prepare() -> None:
    """Fill in rank, size, rendezvous and threads where the launcher left them out.

    Raises:
        UserError: some of what a launcher sets is there and some is not.

    """
    environment = os.environ
    if (
        "RANK" not in environment
        and "SLURM_PROCID" in environment
        and int(environment.get("SLURM_NTASKS", 1)) > 1
    ):
        environment["RANK"] = environment["SLURM_PROCID"]
        environment["WORLD_SIZE"] = environment["SLURM_NTASKS"]
        environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
        environment["LOCAL_WORLD_SIZE"] = environment.get("SLURM_NTASKS_PER_NODE", "1").split("(")[0]
        environment.setdefault("MASTER_PORT", str(20000 + int(environment["SLURM_JOB_ID"]) % 20000))
        nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "127.0.0.1")
        environment.setdefault("MASTER_ADDR", first_node(nodes))
    if "RANK" not in environment:
        environment.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")
        environment.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()))
    missing = [name for name in _RENDEZVOUS if name not in environment]
    if missing:
        raise UserError(
            f"RANK is set in the environment and {', '.join(missing)} not. Start the ranks with deepspeed, torchrun or"
            " srun, or unset RANK for a run in one process."
        )
    here = environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE") or environment["WORLD_SIZE"]
    environment.setdefault("LOCAL_SIZE", here)
    environment.setdefault("CROSS_RANK", "0")
    environment.setdefault("CROSS_SIZE", "1")
    # Without it every rank starts as many threads as there are cores, and they wait for each other.
    # torchrun sets it to 1 whatever the machine; a value of the user's own stays.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(here))))
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    keep_memory()
    # Said many times a second by torch about calls that DeepSpeed makes.
    for name in (
        "all_gather_into_tensor",
        "reduce_scatter_tensor",
        "_all_gather_base",
        "_reduce_scatter_base",
    ):
        warnings.filterwarnings(
            "ignore", message=rf".*torch\.distributed\.{name}` is", category=FutureWarning
        )
    # Said of DeepSpeed's own barrier: each process has one GPU, which join_world chose.
    warnings.filterwarnings("ignore", message=r"barrier\(\): using the device", category=UserWarning)


def keep_memory() -> None:
    """Let glibc keep blocks instead of giving them back to the system and asking again at every step.

    On a CPU the pages of activations are otherwise zeroed anew each time: about a twelfth of a training step. What is
    larger than glibc ever keeps, a gradient of a large table, is given in pages of 2 MB instead of 4 KB where the
    system has such: with 250,000 rows of the table a fifth of the step. A setting of the user's own stays.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch's allocator
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its largest
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        pass  # another C library: as it was


def first_node(nodes: str) -> str:
    """The first name of Slurm's list of nodes: ``gpu[03-05,9],login`` -> ``gpu03``."""
    found = re.match(r"([^,\[]+)(?:\[([^,\-\]]+)[^\]]*\]([^,\[]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else nodes


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
