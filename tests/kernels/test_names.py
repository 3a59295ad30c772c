"""kernels/ beside the Hugging Face package of the same name: cheap, without a version, clear about itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LOSSES = "import kernels.alignment, kernels.margin, kernels.vocabulary, kernels.implementation\n"


def run(program: str, *path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``program`` in a fresh process, with the folders of ``path`` behind everything else that it imports from."""
    program = f"import sys\nsys.path.extend({[str(folder) for folder in path]})\n{program}"
    environment = {**os.environ, **variables}
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=environment
    )


def test_import_of_kernels_loads_neither_torch_nor_triton_and_has_no_version() -> None:
    done = run(
        "import kernels\n"
        "assert not {'torch', 'triton', 'numpy'} & set(sys.modules), 'kernels is not cheap'\n"
        "assert not hasattr(kernels, '__version__')\n"
    )
    assert done.returncode == 0, done.stderr


def test_losses_load_nothing_beyond_torch_in_less_than_50_milliseconds_of_processor() -> None:
    # Neither triton nor a compiler. What torch has loaded before does not count: it may look for triton by itself.
    program = (
        "import time, torch, torch.distributed\nbefore, begin = set(sys.modules), time.process_time()\n"
        f"{LOSSES}print(time.process_time() - begin)\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert new - set(sys.stdlib_module_names) == {'kernels'}, new\n"
        "heavy = {'ctypes', 'torch._dynamo', 'torch._inductor', 'torch.utils.cpp_extension'} - before\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert not [name for name in sys.modules if name.endswith('triton') and name.startswith('kernels')]\n"
    )
    seconds = []
    for _ in range(3):  # the first one writes byte code, which a setting around may forbid
        done = run(program, PYTHONDONTWRITEBYTECODE="")
        assert done.returncode == 0, done.stderr
        seconds.append(float(done.stdout))
    assert min(seconds) < 0.05, f"{seconds} seconds"


def test_an_unknown_name_is_an_import_error_with_the_remedy() -> None:
    with pytest.raises(ImportError, match="pip uninstall kernels"):
        from kernels import get_kernel  # noqa: F401


def test_a_module_is_found_by_from_kernels_import() -> None:
    # In a process of its own: one that was imported before is an attribute, and never asked for.
    done = run("from kernels import aot\nassert aot.AotVariant and 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


MODEL = (
    "from transformers import XLMRobertaConfig, XLMRobertaModel\n"
    "XLMRobertaModel(XLMRobertaConfig(vocab_size=11, hidden_size=4, num_hidden_layers=1,"
    " num_attention_heads=1, intermediate_size=4))\n"
)


def install_the_other(folder: Path, version: str) -> None:
    """Lay out what pip leaves of the Hugging Face package: its code, and the version that transformers asks for."""
    for name, text in {
        "kernels/__init__.py": "def get_kernel(name): ...\n",
        f"kernels-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: kernels\nVersion: {version}\n",
        f"kernels-{version}.dist-info/RECORD": "kernels/__init__.py,,\n",
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def test_a_transformers_model_opens_where_the_other_package_is_not_installed() -> None:
    ours = str(Path("kernels/__init__.py").resolve())
    done = run(f"{MODEL}assert sys.modules['kernels'].__file__ == {ours!r}")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_transformers_model_opens_beside_a_version_that_transformers_does_not_take(tmp_path: Path) -> None:
    install_the_other(tmp_path, "0.1.0")
    done = run(f"import importlib.metadata\nassert importlib.metadata.version('kernels')\n{MODEL}", tmp_path)
    assert done.returncode == 0, done.stderr


def test_beside_a_version_that_transformers_takes_the_remedy_is_said(tmp_path: Path) -> None:
    from transformers.utils.import_utils import KERNELS_MIN_VERSION

    install_the_other(tmp_path, KERNELS_MIN_VERSION)
    done = run(MODEL, tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "this is Calque's folder of losses" in last and "pip uninstall kernels" in last, done.stderr


def test_kernels_are_ours_beside_the_other_package(tmp_path: Path) -> None:
    install_the_other(tmp_path, "99.0")
    done = run("import kernels.aot", tmp_path)
    assert done.returncode == 0, done.stderr
