"""The words that arguments know, as types, and the records that are made of them.

A type checker refuses any other word. Where a word comes from outside (a command line, a file),
`typing.get_args(Rule)` lists those that there are.
"""

from typing import Literal, TypeAlias, TypedDict

__all__ = [
    "Backend",
    "Batching",
    "BuildInfo",
    "Combination",
    "FinishReason",
    "HeadLaw",
    "Law",
    "LossyName",
    "NodeLaw",
    "Preset",
    "Rule",
    "RuleCore",
    "RuleName",
    "RuleRecord",
    "ShapeLaw",
]

RuleCore: TypeAlias = Literal[
    "greedy", "target_only", "coupled", "topdown", "lifted", "kseq", "gbv", "global_resolution"
]
RuleName: TypeAlias = Literal[
    RuleCore, "token", "block", "specinfer", "rrsw", "traversal", "hu", "lifted_hu"
]
# What `rule=` takes.
Rule: TypeAlias = Literal["auto", RuleName]
LossyName: TypeAlias = Literal["typical", "threshold", "topk", "ensemble"]

# Those of `alpha_star`, of `mv.growers.Fixed`, of `mv.drafters.Heads` with a shape, of drafts.
NodeLaw: TypeAlias = Literal["deterministic", "chain", "iid", "swor", "top_plus_one"]
ShapeLaw: TypeAlias = Literal[NodeLaw, "mixed"]
HeadLaw: TypeAlias = Literal[NodeLaw, "coupled"]
Law: TypeAlias = Literal[ShapeLaw, "coupled", "unknown"]

Preset: TypeAlias = Literal["transformers", "vllm"]
# Where a verdict was decided: by the core, by kernels on a device, by operators of torch.
Backend: TypeAlias = Literal["host", "triton", "torch"]
Batching: TypeAlias = Literal["auto", "together", "each"]
# Why a sequence ended, in `Generation.finish_reasons`.
FinishReason: TypeAlias = Literal["stop", "length", "criteria", "cancelled", "error"]
# How `mv.drafters.Combined` uses its drafters.
Combination: TypeAlias = Literal["first", "merge"]


class RuleRecord(TypedDict):
    """One entry of `mv.rules()`.

    Attributes:
        name: What `rule=` takes.
        core: The decision code that runs; rules of one core differ in what they are legal for.
        laws: The laws of drafts that it is lossless for.
        shapes: Which trees it takes.
        lossless: Whether the output has the target's distribution: always.
        source: The paper.
        proof: How that is known.
    """

    name: RuleName
    core: RuleCore
    laws: list[Law]
    shapes: str
    lossless: bool
    source: str
    proof: str


class BuildInfo(TypedDict):
    """What `mv.verifier.build_info()` returns.

    Attributes:
        version: The package's.
        simd: The vector instruction set in use.
        simd_available: Those that this processor has, the plain code included.
        profile: "release" or "debug".
        arch: The processor's architecture.
        os: The operating system.
    """

    version: str
    simd: str
    simd_available: list[str]
    profile: str
    arch: str
    os: str
