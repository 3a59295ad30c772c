"""torch's compiler is imported when something is compiled, and not for an optimizer."""

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
