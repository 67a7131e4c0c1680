"""Blocks of heads, one kind a file; a family's record names the class of its blocks."""
