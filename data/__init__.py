"""Text on disk -> PackedBatch: reading, tokenizer, token store, planner and packing; imports nothing of ours."""
