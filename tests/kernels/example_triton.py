"""A kernel that proves the harness: a product of two matrices, written as the kernels of the losses are."""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# In Triton's interpreter arithmetic on bfloat16 is garbage: there, operands are widened first (same values).
UPCAST = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def product_kernel(
    a, b, out, M, N, K, stride_a, stride_b, stride_out,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out (M, N) = a (M, K) @ b (N, K)^T."""
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        left = tl.load(a + m[:, None] * stride_a + k, (m[:, None] < M) & (k < K), 0.0)
        right = tl.load(b + n[:, None] * stride_b + k, (n[:, None] < N) & (k < K), 0.0)
        if UPCAST:
            left, right = left.to(tl.float32), right.to(tl.float32)
        total = tl.dot(left, right.T, total)
    tl.store(out + m[:, None] * stride_out + n, total, (m[:, None] < M) & (n < N))


def product(a: Tensor, b: Tensor, block: int = 16) -> Tensor:
    out = a.new_empty(len(a), len(b), dtype=torch.float32)
    grid = (triton.cdiv(len(a), block), triton.cdiv(len(b), block))
    product_kernel[grid](
        a, b, out, *out.shape, a.shape[1], a.stride(0), b.stride(0), out.stride(0), block, block, block
    )
    return out


def signature(dtype: str) -> dict[str, str]:
    sizes = {name: "i32" for name in ("M", "N", "K", "stride_a", "stride_b", "stride_out")}
    blocks = {name: "constexpr" for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K")}
    return {"a": f"*{dtype}", "b": f"*{dtype}", "out": "*fp32"} | sizes | blocks


def variant(dtype: str = "bf16", m: int = 64, n: int = 64, k: int = 32, **more: Any) -> dict[str, Any]:
    """The fields of an AotVariant, but not the class: this file may be read where nothing can be compiled."""
    return {
        "name": f"product_{dtype}",
        "function": product_kernel,
        "signature": signature(dtype),
        "constants": {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k},
        # K too: a mask that may end anywhere would forbid wide loads, and with them asynchronous copies.
        "divisible": ("a", "b", "out", "K", "stride_a", "stride_b", "stride_out"),
        "tensor_cores": True,
        **more,
    }
