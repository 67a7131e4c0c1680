"""Experiments on claims about multi-token prediction: `python -m studies NAME`.

They use the package as anyone could, and are no part of it.
"""
