"""Verify a draft: NumPy alone. Calls of the core, what goes into them, and what comes out."""
