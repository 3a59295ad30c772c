"""kernels/ beside the Hugging Face package of the same name: cheap, without a version, clear about itself."""

from __future__ import annotations

import subprocess
import sys

import pytest


def test_import_of_kernels_loads_neither_torch_nor_triton_and_has_no_version() -> None:
    program = (
        "import kernels, sys\n"
        "assert not {'torch', 'triton', 'numpy'} & set(sys.modules), 'kernels is not cheap'\n"
        "assert not hasattr(kernels, '__version__')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_losses_do_not_load_triton() -> None:
    # torch may look for triton by itself; what it has loaded before does not count.
    program = (
        "import torch, sys\nbefore = set(sys.modules)\nimport kernels.alignment, kernels.vocabulary\n"
        "assert not [name for name in set(sys.modules) - before if name.startswith('triton')]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_an_unknown_name_is_an_import_error_with_the_remedy() -> None:
    with pytest.raises(ImportError, match="pip uninstall kernels"):
        from kernels import get_kernel  # noqa: F401


def test_a_module_is_found_by_from_kernels_import() -> None:
    # In a process of its own: one that was imported before is an attribute, and never asked for.
    program = "from kernels import alignment, aot\nassert alignment.alignment_loss and aot.AotVariant"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_transformers_model_opens_with_this_package_in_the_place_of_the_other() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.XLMRobertaConfig(
        vocab_size=11, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4
    )
    assert transformers.XLMRobertaModel(config) is not None
