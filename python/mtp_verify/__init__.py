"""The exact verifier for speculative decoding: any drafter, any tree, any decoder.

Everything here needs NumPy alone; ``Decoder``, ``Target``, ``drafters`` and ``hf`` load torch when
first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mtp_verify import errors, verifier
from mtp_verify._core import Draft, DraftBatch, TokenTree, Verdict, VerdictBatch
from mtp_verify.errors import MtpVerifyError
from mtp_verify.verifier import kv, lossy
from mtp_verify.verifier.api import (
    best_rule,
    build_info,
    derive_seed,
    expected_accepted,
    rules,
    verify,
)
from mtp_verify.verifier.batch import verify_batch
from mtp_verify.verifier.params import SamplingParams

__version__: str = build_info()["version"]

__all__ = [
    "Decoder",
    "Draft",
    "DraftBatch",
    "Drafter",
    "MtpVerifyError",
    "Planner",
    "SamplingParams",
    "Target",
    "TargetCache",
    "TokenTree",
    "Verdict",
    "VerdictBatch",
    "best_rule",
    "certify",
    "constraints",
    "derive_seed",
    "drafters",
    "errors",
    "expected_accepted",
    "growers",
    "heads",
    "hf",
    "kv",
    "lossy",
    "ops",
    "rules",
    "testing",
    "verifier",
    "verify",
    "verify_batch",
]

# Parts loaded on first use, most of which need torch or transformers. What type checkers see of
# them, and where each is found: public name -> module, and attribute if it is not a module.
if TYPE_CHECKING:
    from mtp_verify import drafters, heads, testing
    from mtp_verify.certification import certify
    from mtp_verify.decoder import constraints
    from mtp_verify.decoder.decode import Decoder
    from mtp_verify.decoder.planning import Planner
    from mtp_verify.drafters import Drafter
    from mtp_verify.integrations import hf, ops
    from mtp_verify.models.interface import Target, TargetCache
    from mtp_verify.verifier import growers
else:
    _LAZY = {
        "certify": ("mtp_verify.certification", "certify"),
        "constraints": ("mtp_verify.decoder.constraints", None),
        "Decoder": ("mtp_verify.decoder.decode", "Decoder"),
        "Drafter": ("mtp_verify.drafters", "Drafter"),
        "drafters": ("mtp_verify.drafters", None),
        "growers": ("mtp_verify.verifier.growers", None),
        "heads": ("mtp_verify.heads", None),
        "hf": ("mtp_verify.integrations.hf", None),
        "ops": ("mtp_verify.integrations.ops", None),
        "Planner": ("mtp_verify.decoder.planning", "Planner"),
        "Target": ("mtp_verify.models.interface", "Target"),
        "TargetCache": ("mtp_verify.models.interface", "TargetCache"),
        "testing": ("mtp_verify.testing", None),
    }

    def __getattr__(name: str) -> Any:
        """Load a part on first use."""
        if name not in _LAZY:
            message = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(message)
        module_name, attribute = _LAZY[name]
        module = import_module(module_name)
        value = module if attribute is None else getattr(module, attribute)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """List the public names, those loaded on first use included."""
    return [*__all__, "__version__"]
