"""transformers: speculative decoding inside `model.generate`.

`generate` is `model.generate` with drafts; `speculative` is a `custom_generate` for code that calls
`model.generate` itself; `patch` gives the library's own assisted decoding our rule.
"""

from mtp_verify.integrations.hf.generate import generate
from mtp_verify.integrations.hf.patch import patch
from mtp_verify.integrations.hf.processors import params_from_processors
from mtp_verify.integrations.hf.speculative import speculative

__all__ = ["generate", "params_from_processors", "patch", "speculative"]
