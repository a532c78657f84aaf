"""Execution: the plan of a run, and the executor that carries it out."""
