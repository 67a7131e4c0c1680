"""Generate: `Decoder`, and the loop of proposing, running the target, verifying and committing.

`decode` is the public face; `rows` is one request and all that belongs to it, `runners` runs the
target over many, and `session` is the loop.
"""
