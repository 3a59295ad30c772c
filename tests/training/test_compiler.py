"""torch's compiler and Triton are imported when something is compiled, not for an optimizer, not for DeepSpeed."""

import subprocess
import sys

SCRIPT = """
import sys
import torch
from training.compiler import put_off_compiler

put_off_compiler()
put_off_compiler()
weight = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.AdamW([weight], fused=True)
weight.square().sum().backward()
optimizer.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
torch.compiler.disable(lambda: None)()
torch.compiler.disable(recursive=False)(lambda: None)()
assert "sympy" not in sys.modules, "an optimizer has imported the compiler"

doubled = torch.compile(lambda x: 2 * x, backend="eager", fullgraph=True)
assert doubled(weight).tolist() == (2 * weight).tolist()
assert torch._dynamo is sys.modules["torch._dynamo"] and "sympy" in sys.modules
import torch._dynamo.config
put_off_compiler()
assert torch._dynamo is sys.modules["torch._dynamo"] and torch._dynamo.config
print("done")
"""


def test_it_comes_when_something_is_compiled() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.stdout == "done\n", done.stderr


START = """
import sys
from training import environment

environment.prepare()
import torch
from training.engine import Engine, join_world

world = join_world()
import deepspeed
from deepspeed.ops.triton_ops import is_triton_available

model = torch.nn.Linear(2, 2)
optimizer = torch.optim.AdamW(model.parameters())
settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 0}, "bf16": {"enabled": False}}
Engine(model, optimizer, {**settings, "gradient_accumulation_steps": 1}, world)
heavy = {"sympy", "triton"} & {*sys.modules}
assert bool(heavy) == torch.cuda.is_available(), f"DeepSpeed has imported {heavy}"
assert is_triton_available() == torch.cuda.is_available()
import triton.language
print("done")
"""


def test_deepspeed_does_without_them() -> None:
    done = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, timeout=120)
    assert done.stdout.endswith("done\n"), done.stderr
