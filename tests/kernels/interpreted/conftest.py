"""Tests of Triton kernels on the CPU. They run where TRITON_INTERPRET=1 was set before the process began.

Triton decides when a kernel is defined whether it is interpreted or compiled, so these tests need a process of their
own: tests/kernels/test_interpreted.py starts it. By hand:

    TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted [-k NAME]
"""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
