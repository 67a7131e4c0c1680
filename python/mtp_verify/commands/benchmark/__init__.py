"""`mtp-verify bench`: what the drafters are worth on prompts, against plain decoding."""
