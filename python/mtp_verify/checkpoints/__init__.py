"""Checkpoints on disk: safetensors files, and the folders that hold them."""
