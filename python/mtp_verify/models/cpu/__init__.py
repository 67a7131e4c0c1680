"""Narrow forwards on a CPU: fused operators, attention of a few rows, prepacked weights."""
