"""Builds of the CUDA C++ source: a library for this machine's CPU, one for its GPU, and cubins to look at.

Libraries stay in the user's cache folder (XDG_CACHE_HOME, else ~/.cache) under a name made of everything that they
depend on: sources, compiler, flags, processor. A build writes a file of its own and renames it into place: there is
no lock that a killed process could leave behind, and ranks that build at once only do the same work twice.

-ffast-math is left out on purpose: it lets a compiler assume that there is no NaN, and a NaN in a vector must
reach the loss, where the trainer looks for it. The source keeps its sums in arrays (row.h), which vectorise
without it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

from kernels.implementation import ImplementationUnavailable

logger: Final = logging.getLogger(__name__)

SOURCES: Final = Path(__file__).parent
CPU_FLAGS: Final = ("-O3", "-march=native", "-fno-math-errno", "-std=c++17", "-shared", "-fPIC", "-pthread")
CUDA_FLAGS: Final = ("-O3", "-std=c++17")
PATIENCE: Final = 300.0  # seconds for a build that takes 3


@cache
def cpu_compiler() -> str | None:
    """Path of the C++ compiler (CXX, else g++, c++ or clang++ on PATH), None where there is none."""
    named = os.environ.get("CXX", "").split()
    return next(filter(None, map(shutil.which, [*named[:1], "g++", "c++", "clang++"])), None)


@cache
def cuda_compiler() -> str | None:
    """Path of nvcc (CUDA_HOME, PATH or /usr/local/cuda), None where there is none."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    inside = [str(Path(home) / "bin" / "nvcc") for home in homes if home]
    return next(filter(None, map(shutil.which, [inside[0], "nvcc", *inside[1:]])), None)


def cpu_library() -> Path:
    """Build margin.cpp for this processor, unless that is done; return the library."""
    compiler = cpu_compiler()
    if compiler is None:
        raise ImplementationUnavailable("no C++ compiler: install g++ or set CXX, or choose 'streaming'")
    return _library("margin.cpp", compiler, CPU_FLAGS, _processor())


def cuda_library(capability: tuple[int, int]) -> Path:
    """Build margin.cu for GPUs of ``capability``, unless that is done; return the library."""
    compiler = cuda_compiler()
    if compiler is None:
        raise ImplementationUnavailable(
            "no CUDA compiler: install the CUDA toolkit and set CUDA_HOME, or choose 'triton' or 'streaming'"
        )
    flags = (*CUDA_FLAGS, f"-arch=sm_{capability[0]}{capability[1]}", "--shared", "-Xcompiler", "-fPIC")
    return _library("margin.cu", compiler, flags, "")


def cubin(architecture: int, to: Path) -> str:
    """Compile margin.cu for ``architecture`` (90 is sm_90) into the file ``to``; return what ptxas says of it.

    That is the registers, stack and spills of every kernel. No GPU is needed.
    """
    compiler = cuda_compiler()
    if compiler is None:
        raise ImplementationUnavailable("no CUDA compiler: install the CUDA toolkit and set CUDA_HOME")
    flags = (*CUDA_FLAGS, "-cubin", f"-arch=sm_{architecture}", "-Xptxas", "-v")
    return compile_to(to, SOURCES / "margin.cu", compiler, flags)


def compile_to(to: Path, source: Path, compiler: str, flags: Sequence[str]) -> str:
    """Compile ``source`` into the file ``to``, whole or not at all; return what the compiler says."""
    descriptor, unfinished = tempfile.mkstemp(dir=to.parent, prefix=f"{to.stem}-", suffix=to.suffix)
    os.close(descriptor)
    try:
        command = [compiler, *flags, "-o", unfinished, str(source)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode:
            raise ImplementationUnavailable(f"{' '.join(command)} failed:\n{done.stderr.strip()[-2000:]}")
        os.replace(unfinished, to)
    except subprocess.TimeoutExpired as slow:
        raise ImplementationUnavailable(f"{compiler} took more than {PATIENCE:.0f} seconds") from slow
    finally:
        Path(unfinished).unlink(missing_ok=True)
    return done.stderr


def _library(source: str, compiler: str, flags: Sequence[str], processor: str) -> Path:
    depends = hashlib.sha256()
    for part in (compiler, _version(compiler), *flags, processor):
        depends.update(part.encode() + b"\0")
    for path in sorted(SOURCES.glob("*.h")) + [SOURCES / source]:
        depends.update(path.read_bytes())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "calque"
    library = folder / f"{source.replace('.', '-')}-{depends.hexdigest()[:20]}.so"
    if not library.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            logger.info("compiling %s with %s, once for this machine: a few seconds", source, compiler)
            compile_to(library, SOURCES / source, compiler, flags)
        except OSError as error:
            raise ImplementationUnavailable(
                f"no library can be built in {folder}: {error}; set XDG_CACHE_HOME to a folder that can be written"
            ) from error
    return library


def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60).stdout


def _processor() -> str:
    """What -march=native looks at: a home folder may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform()
    told = ("model name", "flags", "Features", "CPU part")
    return "\n".join([platform.machine(), *sorted({line for line in lines if line.startswith(told)})])
