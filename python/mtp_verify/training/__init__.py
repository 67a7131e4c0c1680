"""Training of draft heads on a target's own text; `mtp-verify train` is the command."""
