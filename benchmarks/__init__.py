"""Measurements: one command for each question; each prints one table and writes it to a file."""
