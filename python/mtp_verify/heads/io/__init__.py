"""Heads on disk.

Loading is a row of functions, each with one file: `Checkpoint` reads, `recognise` says what a head
is, `convert` gives its tensors by the names of our parameters, `assemble` makes the head.
"""
