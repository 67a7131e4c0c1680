"""Generate: `Decoder`, and the loop of proposing, running the target, verifying and committing.

`decode` is what users call; `options` are the arguments of a request and `prompts` its text,
`sequences` its running state, `runners` run the target over many, and `session` is the loop.
"""
