"""Text on disk -> PackedBatch: reading, tokenizer, store, planner and packing; imports nothing of ours."""
