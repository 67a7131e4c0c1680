"""This package's rules instead of vLLM's rejection samplers, where they are switched on.

vLLM loads `register` through the entry point `vllm.general_plugins` in every process. It does
nothing unless the environment variable `MTP_VERIFY_VLLM` is set: to 1, or to the name of a rule.
Then both runners' samplers are replaced (see `v1` and `v2`), since only an engine's configuration
says which of them it builds.
"""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any

from mtp_verify.errors import MtpVerifyError, UnsupportedModelError
from mtp_verify.integrations.vllm import v1, v2
from mtp_verify.integrations.vllm.seams import GATE, PLAIN, RULES, SHAPING, V1, V2, warn_once

if TYPE_CHECKING:
    from collections.abc import Callable

    from mtp_verify.integrations.vllm.seams import Seam
    from mtp_verify.verifier.words import Rule

__all__ = ["install", "is_installed", "register", "uninstall"]


def register() -> None:
    """Install what `MTP_VERIFY_VLLM` asks for; this is the entry point.

    What cannot be installed leaves the engine as it is, with a warning: vLLM would not start after
    an error.
    """
    try:
        rule = GATE.switch()
        if rule is not None:
            install(rule)  # type: ignore[arg-type]
    except MtpVerifyError as error:
        warnings.warn(f"{GATE.variable}: {error}", RuntimeWarning, stacklevel=2)


def install(rule: Rule = "auto") -> None:
    """Replace the samplers of the vLLM in this process; a second call changes the rule.

    Args:
        rule: One of `RULES`. "coupled" is for the V2 model runner, and replaces its sampler of
            requests without drafts, too.

    Raises:
        UnsupportedModelError: No such rule, or a vLLM whose samplers this module does not know;
            says what is supported. The engine is then untouched.
        ImportError: vLLM is not installed.
    """
    if rule not in RULES:
        message = f"rule: found {rule!r}, wanted one of: {', '.join(RULES)}"
        raise UnsupportedModelError(message, slug="unknown_rule")
    import vllm

    version = str(vllm.__version__)
    GATE.check(version)  # Before anything of an unknown engine is imported.
    has_v1, has_v2 = V1.find() is not None, V2.find() is not None
    if not has_v1 and not has_v2:
        GATE.refuse(f"{version}: found the sampler of neither model runner")
    functions = {V1.name: V1.original()} if has_v1 else {}
    if has_v2:
        functions |= {seam.name: seam.original() for seam in (V2, PLAIN, SHAPING)}
    GATE.check(version, functions)
    if has_v1:
        _put(V1, v1, rule)
    if has_v2:
        _put(V2, v2, rule)
        PLAIN.restore()
        if rule == "coupled":
            plain = PLAIN.original()
            function = v2.sampling(plain, PLAIN.find())
            PLAIN.put(functools.wraps(plain)(function), is_ours=True)


def uninstall() -> None:
    """Give vLLM its own samplers back."""
    for seam in (V1, V2, PLAIN):
        seam.restore()


def is_installed() -> bool:
    """Return whether the sampler of the vLLM in this process verifies with this package.

    That is the one of the model runner that is loaded; before one is, or if both are, all of those
    that this vLLM has.
    """
    loaded = [seam for seam in (V1, V2) if seam.is_loaded]
    asked = loaded or [seam for seam in (V1, V2) if seam.find() is not None]
    return bool(asked) and all(seam.is_ours for seam in asked)


def _put(seam: Seam, runner: Any, rule: Rule) -> None:
    """Replace a runner's sampler, or let it say once that it cannot be."""
    original, objection = seam.original(), runner.objection(rule)
    if objection is None:
        function: Callable[..., Any] = runner.verifying(original, rule)
    else:
        function = _inert(original, objection)
    seam.put(functools.wraps(original)(function), is_ours=objection is None)


def _inert(original: Callable[..., Any], objection: str) -> Callable[..., Any]:
    def inert(*args: Any, **kwargs: Any) -> Any:
        warn_once(objection)
        return original(*args, **kwargs)

    return inert
