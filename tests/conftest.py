"""Surroundings of every test: one thread per process, no network, known noise of torch silenced."""

from __future__ import annotations

import os

# Before anything imports torch: the tests fork ranks, and forked ranks must not fight for cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("DS_ACCELERATOR", "cpu")

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no fault of what is tested.
settings.register_profile("calm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("calm")

# DeepSpeed calls these names of torch.distributed and each call warns. By message, nothing broader.
DEPRECATED_COLLECTIVES = (
    "_all_gather_base",
    "_reduce_scatter_base",
    "all_gather_into_tensor",
    "reduce_scatter_tensor",
)


def pytest_configure(config: pytest.Config) -> None:
    for name in DEPRECATED_COLLECTIVES:
        config.addinivalue_line("filterwarnings", rf"ignore:.*torch\.distributed\.{name}` is:FutureWarning")


@pytest.fixture(scope="session")
def small_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a recipe whose store, on real text, is prepared. Run folders go elsewhere: pass ``runs``."""
    from data.preparation import prepare
    from data.recipe import parse_recipe, read_recipe
    from tests.small_run import write_small_recipe
    from training.config import Recipe

    path = write_small_recipe(tmp_path_factory.mktemp("small"))
    prepare(parse_recipe(read_recipe(path), Recipe), workers=1, say=lambda message: None)
    return path
