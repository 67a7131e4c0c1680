"""What comes in from callers, brought into the form that the core takes."""

from typing import Any

from mtp_verify.errors import ParamsError

__all__ = ["check_word", "on_host"]

_WORDS = 1 << 64


def on_host(tensor: Any) -> Any:
    """The tensor itself, or its copy on the host where it lives on a device; detached."""
    if getattr(tensor, "requires_grad", False):
        tensor = tensor.detach()
    return tensor if getattr(tensor, "is_cpu", True) else tensor.cpu()


def check_word(name: str, value: int) -> None:
    """Refuse what does not fit the 64 bits of a seed or a position.

    Raises:
        ParamsError: names the value.
    """
    if not 0 <= value < _WORDS:
        message = f"{name}: found {value}, wanted 0 <= {name} < 2**64"
        raise ParamsError(message, slug="param_out_of_range")
