"""Compiles every Triton kernel for devices that need not be there, and holds it to a budget of their resources.

    python -m kernels.aot [--only NAME] [--write]        a table of all kernels; --write makes it the budget

A module of kernels whose name ends in ``triton`` has ``aot_variants()``: the kernels as its launchers call them. Each
is compiled to the device's own instructions, and what these ask of the device is read from them: registers, stack
(where registers are spilled to), shared memory, and which tensor-core instructions are there. resource_budget.json
holds what that was when somebody last looked; a kernel that asks for more is a regression. Nothing runs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

BUDGET: Final = Path(__file__).parent / "resource_budget.json"


class Target(NamedTuple):
    """A device to compile for."""

    backend: str
    architecture: int | str
    warp: int  # threads
    shared_limit: int  # bytes a block may have; the compiler does not look at it
    tensor_cores: str  # instructions that multiply matrices, as a regular expression


# An instruction of an older generation is a fall-back: on sm_90 and sm_100 HMMA runs at half the rate or less.
TARGETS: Final = {
    "sm_80": Target("cuda", 80, 32, 163 * 1024, r"\b([HI]MMA)\."),
    "sm_90": Target("cuda", 90, 32, 227 * 1024, r"\b(HGMMA|[HI]MMA)\."),
    "sm_100": Target("cuda", 100, 32, 227 * 1024, r"\b(UTC[A-Z]*MMA|[HI]MMA)\b"),
    "gfx942": Target("hip", "gfx942", 64, 64 * 1024, r"\b(v_mfma)_"),
}


class AotVariant(NamedTuple):
    """A kernel with the types and constants of one way in which it is launched.

    ``signature`` names every argument: a Triton type ("*bf16", "i32", "fp32"), or "constexpr" where ``constants``
    has the value. ``divisible`` are arguments (pointers, strides, sizes) that are multiples of 16 there, which is
    what lets the compiler load vectors.
    """

    name: str
    function: Any  # under @triton.jit
    signature: dict[str, str]
    constants: dict[str, Any]
    divisible: tuple[str, ...] = ()
    warps: int = 4
    stages: int = 2
    tensor_cores: bool = False  # whether its products must run on them
    targets: tuple[str, ...] = tuple(TARGETS)  # where it is launched like this


class Compiled(NamedTuple):
    """What a compiled kernel asks of its device."""

    registers: int  # a thread
    stack: int  # bytes a thread, 0 where nothing is spilled
    shared: int  # bytes a block
    tensor_cores: dict[str, int]  # instruction -> how often it stands in the code
    assembly: str

    def budget(self) -> dict[str, Any]:
        """What is checked in."""
        return {name: value for name, value in self._asdict().items() if name != "assembly"}


def compile_variant(variant: AotVariant, target: str) -> Compiled:
    """Compile ``variant`` for ``target``, a name of TARGETS. Must not run in a process that interprets Triton."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compile_source

    device = TARGETS[target]
    names = variant.function.arg_names
    if not hasattr(variant.function, "cache_key"):
        raise RuntimeError(
            f"{variant.name}: TRITON_INTERPRET is set; what is interpreted can not be compiled"
        )
    constant = {name for name, kind in variant.signature.items() if kind == "constexpr"}
    if set(variant.signature) != set(names) or constant != set(variant.constants):
        raise ValueError(
            f"{variant.name}: the kernel's arguments are {', '.join(names)}; the signature has"
            f" {', '.join(variant.signature)}, the constants {', '.join(variant.constants)}"
        )
    source = ASTSource(
        variant.function,
        {name: variant.signature[name] for name in names},
        variant.constants,
        {(names.index(name),): [["tt.divisibility", 16]] for name in variant.divisible},
    )
    kernel = compile_source(
        source,
        target=GPUTarget(device.backend, device.architecture, device.warp),
        options={"num_warps": variant.warps, "num_stages": variant.stages},
    )
    if device.backend == "cuda":
        registers, stack, assembly = _read_cubin(kernel.asm["cubin"])
    else:
        registers, stack, assembly = _read_amdgcn(kernel.asm["amdgcn"])
    found = re.findall(device.tensor_cores, assembly)
    counts = {name: found.count(name) for name in sorted(set(found))}
    return Compiled(registers, stack, kernel.metadata.shared, counts, assembly)


def _read_cubin(binary: bytes) -> tuple[int, int, str]:
    """Registers, stack and assembly of a CUDA binary, by the tools that Triton brings."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", file.name]
        told = subprocess.run(command, check=True, capture_output=True, text=True)
    usage = re.search(r"REG:(\d+) STACK:(\d+)", told.stdout + told.stderr)
    if usage is None:
        raise RuntimeError(f"cuobjdump says nothing of resources: {told.stdout[:500]}{told.stderr[:500]}")
    return int(usage[1]), int(usage[2]), told.stdout


def _read_amdgcn(assembly: str) -> tuple[int, int, str]:
    """Vector registers, stack and assembly of an AMD kernel, from the notes that its assembler leaves."""
    notes = dict(re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s*(\d+)", assembly))
    return int(notes["vgpr_count"]), int(notes["private_segment_fixed_size"]), assembly


def excesses(variant: AotVariant, target: str, compiled: Compiled, allowed: Mapping[str, Any]) -> list[str]:
    """Sentences on what ``compiled`` has that it must not have; none if all is well.

    ``allowed`` is the kernel's entry of the budget for this target, empty if there is none.
    """
    device = TARGETS[target]
    here = f"{variant.name} on {target}"
    said = []
    if compiled.shared > device.shared_limit:
        said.append(f"{here}: {compiled.shared} bytes of shared memory, the device has {device.shared_limit}")
    if variant.tensor_cores and not compiled.tensor_cores:
        said.append(f"{here}: no tensor-core instruction; its products run on the ordinary units")
    if not allowed:
        return [*said, f"{here}: not in the budget; python -m kernels.aot --write puts it there"]
    for name in ("registers", "stack", "shared"):
        value = getattr(compiled, name)
        if value > allowed[name]:
            said.append(f"{here}: {name} {value}, the budget allows {allowed[name]}")
    gone = sorted(set(allowed["tensor_cores"]) - set(compiled.tensor_cores))
    if gone:
        said.append(f"{here}: {', '.join(gone)} no longer in the code; the budget has it")
    return said


def all_variants() -> dict[str, AotVariant]:
    """Every kernel of every Triton module under kernels, as module.variant (``alignment.rows_bf16``)."""
    found: dict[str, AotVariant] = {}
    for path in sorted(Path(__file__).parent.glob("*/*triton.py")):
        module = importlib.import_module(f"kernels.{path.parent.name}.{path.stem}")
        for variant in module.aot_variants():
            name = f"{path.parent.name}.{variant.name}"
            if name in found:
                raise ValueError(f"two kernels are called {name}")
            found[name] = variant._replace(name=name)
    return found


def read_budget() -> dict[str, dict[str, dict[str, Any]]]:
    """Kernel -> target -> what it may ask for."""
    budget: dict[str, dict[str, dict[str, Any]]] = json.loads(BUDGET.read_text())["kernels"]
    return budget


def _compile_all(variants: Sequence[AotVariant]) -> Iterator[tuple[AotVariant, str, Compiled]]:
    for variant in variants:
        for target in variant.targets:
            yield variant, target, compile_variant(variant, target)


def _page(version: str, budget: Mapping[str, Mapping[str, Any]]) -> str:
    """The budget as JSON, a line for each kernel and target, so that a change is a line."""
    kernels = []
    for name, of in sorted(budget.items()):
        lines = [f"   {json.dumps(target)}: {json.dumps(allowed)}" for target, allowed in of.items()]
        kernels.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n  }")
    return f'{{\n "triton": {json.dumps(version)},\n "kernels": {{\n' + ",\n".join(kernels) + "\n }\n}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the status is 1 if a kernel exceeds the budget or its device."""
    parser = argparse.ArgumentParser(
        prog="python -m kernels.aot", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="NAME",
        help="kernels whose name begins like this; others stay as they are",
    )
    parser.add_argument("--write", action="store_true", help="make what is found the budget")
    given = parser.parse_args(arguments)
    import triton

    budget = read_budget() if BUDGET.exists() else {}
    variants = {name: variant for name, variant in all_variants().items() if name.startswith(given.only)}
    if given.write:  # kernels that are gone leave the budget
        budget = {name: of for name, of in budget.items() if given.only and not name.startswith(given.only)}
    said = []
    width = max(map(len, variants), default=0)
    print(f"{'kernel':{width}}  target  registers  stack  shared  tensor cores")
    for variant, target, compiled in _compile_all(list(variants.values())):
        if given.write:
            budget.setdefault(variant.name, {})[target] = compiled.budget()
        said += excesses(variant, target, compiled, budget.get(variant.name, {}).get(target, {}))
        cores = " ".join(f"{count} {name}" for name, count in compiled.tensor_cores.items()) or "-"
        print(
            f"{variant.name:{width}}  {target:6}  {compiled.registers:9}  {compiled.stack:5}"
            f"  {compiled.shared:6}  {cores}",
            flush=True,
        )
    if given.write:
        BUDGET.write_text(_page(triton.__version__, budget))
    for sentence in said:
        print(f"error: {sentence}", file=sys.stderr)
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
