"""The encoder and its heads: tensors and process groups; no corpora, no losses of tasks, no engine."""
