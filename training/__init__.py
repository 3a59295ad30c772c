"""The run: configuration, engine, steps, checkpoints, telemetry, evaluation, export. Nothing imports it."""
