"""A draft head for SmolLM2-135M-Instruct, as `mtp_verify.heads.load` reads it from this folder."""
