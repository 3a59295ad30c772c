"""How fast tokens come from a store to a batch, beside others (python -m benchmarks.data)."""
