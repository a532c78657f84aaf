"""Solvers: pure maths on arrays."""
