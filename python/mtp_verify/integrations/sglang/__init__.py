"""SGLang: a plug-in that replaces its tree verification by our verifier.

Installed with the package (entry point group `sglang.srt.plugins`), off unless the environment says
`MTP_VERIFY_SGLANG=1`, or `=coupled` for tokens that do not depend on what was drafted. It stands
around `eagle_sample`, which every EAGLE, MTP and n-gram worker calls after the target's forward,
and keeps the tensors that the engine's kernels take and give: D rows a request, the root included;
links to the first child and the next sibling, -1 for none; `predicts`, `accept_index` and
`accept_token_num` written in place.

What changes for users: sampling is sampling on every device (the engine commits the most likely
token on CPU and XPU), siblings may repeat, `min_p` counts, and drafts that were sampled from a
known row are accepted by block verification. The acceptance thresholds below 1, watermarks and
simulated acceptance stay the engine's own.
"""

from mtp_verify.integrations.sglang.eagle import eagle_sample
from mtp_verify.integrations.sglang.links import links_from_tree, tree_from_links
from mtp_verify.integrations.sglang.plugin import register
from mtp_verify.integrations.sglang.trees import verify_trees

__all__ = ["eagle_sample", "links_from_tree", "register", "tree_from_links", "verify_trees"]
