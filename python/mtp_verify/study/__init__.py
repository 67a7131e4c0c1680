"""Experiments on claims about multi-token prediction; `mtp-verify study` is the command."""
