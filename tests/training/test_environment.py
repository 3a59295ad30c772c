"""However a run is launched, the same variables are there before torch is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from data.recipe import UserError
from training.environment import first_node, prepare

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
THREADS = "OMP_NUM_THREADS"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing that a launcher sets; all as it was afterwards."""
    before = dict(os.environ)
    for name in [
        name for name in os.environ if name in (*NAMES, THREADS) or name.startswith(("SLURM", "CROSS"))
    ]:
        del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


def test_plain_python_is_one_rank_with_all_cores() -> None:
    prepare()
    assert [os.environ[name] for name in NAMES[:3]] == ["0", "0", "1"]
    assert os.environ["MASTER_ADDR"] == "127.0.0.1" and int(os.environ["MASTER_PORT"]) > 0
    assert os.environ[THREADS] == str(os.cpu_count())


def test_two_plain_runs_at_once_do_not_meet() -> None:
    prepare()
    port = os.environ.pop("MASTER_PORT")
    del os.environ["RANK"]
    prepare()
    assert os.environ["MASTER_PORT"] != port


@pytest.mark.parametrize("size", ["LOCAL_SIZE", "LOCAL_WORLD_SIZE"])  # of deepspeed, of torchrun
def test_a_launchers_ranks_share_the_cores_and_keep_what_it_set(size: str) -> None:
    set_by_launcher = {
        "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", size: "2", "MASTER_ADDR": "node1", "MASTER_PORT": "29500",
    }  # fmt: skip
    os.environ.update(set_by_launcher)
    prepare()
    assert {name: os.environ[name] for name in set_by_launcher} == set_by_launcher
    assert os.environ["LOCAL_SIZE"] == "2"
    assert os.environ[THREADS] == str(max(1, (os.cpu_count() or 1) // 2))


def test_a_number_of_threads_that_the_person_set_stays() -> None:
    os.environ[THREADS] = "7"
    prepare()
    assert os.environ[THREADS] == "7"


def test_srun() -> None:
    os.environ.update(
        SLURM_PROCID="5", SLURM_NTASKS="8", SLURM_LOCALID="1", SLURM_NTASKS_PER_NODE="4(x2)", SLURM_JOB_ID="123456",
        SLURM_STEP_NODELIST="gpu[03-04]", SLURM_JOB_NODELIST="gpu[03-07]",
    )  # fmt: skip
    prepare()
    found = [os.environ[name] for name in NAMES]
    assert found == ["5", "1", "8", "4", "4", "gpu03", str(20000 + 123456 % 20000)]


def test_a_shell_in_a_slurm_job_is_one_process() -> None:
    os.environ.update(SLURM_PROCID="0", SLURM_NTASKS="1", SLURM_JOB_ID="1")
    prepare()
    assert os.environ["WORLD_SIZE"] == "1" and os.environ["MASTER_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[03-05,9],login", "gpu03"),
        ("gpu[7,9]", "gpu7"),
        ("rack2-gpu[001-128]-ib", "rack2-gpu001-ib"),
        ("a-1,b[2-3]", "a-1"),
    ],
)
def test_the_first_node_of_slurms_list(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


def test_half_of_a_launcher_is_refused() -> None:
    os.environ.update(RANK="0", WORLD_SIZE="2")
    with pytest.raises(UserError, match="LOCAL_RANK, MASTER_ADDR, MASTER_PORT not"):
        prepare()
