"""Verify rows where they are: a step's tensors, and the code that runs over them on any device."""
