"""transformers: speculative decoding inside `model.generate`.

`speculative` is a `custom_generate`; `patch` gives the library's own assisted decoding our rule.
"""

from mtp_verify.integrations.hf.patch import patch
from mtp_verify.integrations.hf.processors import params_from_processors
from mtp_verify.integrations.hf.speculative import speculative

__all__ = ["params_from_processors", "patch", "speculative"]
