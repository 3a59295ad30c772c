"""Contestants that take turns, each in processes of its own, one run at a time, so that noise falls on all."""
