"""What `mtp_verify.decode` is made of.

`rows` is one request and all that belongs to it; `runners` runs the target over many; `session` is
the loop: propose, forward, verify, commit.
"""
