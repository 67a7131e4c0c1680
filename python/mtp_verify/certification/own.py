"""This package's rules to certify: in its own decoder, and inside transformers' `generate`.

Each mode is a rule with a drafter whose drafts it is legal for: together they are every rule, on
every law that drafters make.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtp_verify.certification.loops import generate_loop
from mtp_verify.certification.settings import NUM_DRAFTS, filled_up
from mtp_verify.errors import NumericsError
from mtp_verify.verifier import lossy
from mtp_verify.verifier.api import derive_seed, rules

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mtp_verify.certification.loops import Sample
    from mtp_verify.certification.models import Checkpoints
    from mtp_verify.certification.settings import Setting
    from mtp_verify.verifier.params import SamplingParams
    from mtp_verify.verifier.words import Rule

__all__ = ["LOSSY", "MODES", "NUM_DRAFTS", "decoder_loop", "drop_in_loop", "patched"]

# The modes that do not keep the law, with the numbers that their papers and libraries start from.
LOSSY = {
    "typical": lossy.typical(0.3, 0.09),
    "threshold": lossy.threshold(0.25),
    "topk": lossy.topk(2),
    "ensemble": lossy.ensemble(0.5),
}
# Laws; the first that a rule takes is the one that it is certified on.
_LAWS = ("chain", "swor", "top_plus_one", "iid", "coupled", "deterministic")


def _rule_modes() -> dict[str, tuple[str, Rule]]:
    """Return each rule of the table with a drafter whose drafts it is legal for."""
    found: dict[str, tuple[str, Rule]] = {}
    table = rules()
    # Rules that others are special cases of, or that temperature 0 alone takes, are in "auto".
    general = {row["core"] for row in table if row["core"] != row["name"]} | {"greedy"}
    for row in table:
        law = next((law for law in _LAWS if law in row["laws"]), None)
        if law is not None and row["name"] not in general:
            name = "paths" if "paths" in row["shapes"] else law
            found[row["name"]] = ("tree" if name == "deterministic" else name, row["name"])
    return found


# Mode -> drafter, rule.
MODES: dict[str, tuple[str, Rule]] = {
    "plain": ("none", "auto"),
    "auto": ("chain", "auto"),
    **_rule_modes(),
    "race": ("coupled", "coupled"),
    **{name: (name, "auto") for name in ("tree", "ngram", "suffix", "recycling")},
    # Several drafters: one after the other, with drafts of different laws.
    "combined": ("combined", "auto"),
    # One learns from what the target drew; the drafts of the other show noise of later tokens.
    "combined-race": ("combined-race", "auto"),
    "planned": ("chain", "block"),
    **dict.fromkeys(LOSSY, ("chain", "auto")),
}


def _drafter(name: str, checkpoints: Checkpoints, params: SamplingParams) -> Any:
    """Return a drafter by the law of its drafts, or by its own name."""
    from mtp_verify.drafters import Combined, Model, ModelTree, NGram, Recycling, Suffix

    def heads(law: str) -> Any:
        return _heads(law, checkpoints.target_model, params)

    model = checkpoints.drafter_model
    made: dict[str, Callable[[], Any]] = {
        "none": lambda: None,
        "chain": lambda: Model(model, num_tokens=NUM_DRAFTS, params=params),
        "tree": lambda: ModelTree(model, max_nodes=4, max_depth=NUM_DRAFTS, max_children=2),
        "ngram": lambda: NGram(num_tokens=NUM_DRAFTS),
        "suffix": lambda: Suffix(num_tokens=NUM_DRAFTS),
        "recycling": Recycling,
        "combined": lambda: Combined([Suffix(num_tokens=NUM_DRAFTS), made["chain"]()]),
        "combined-race": lambda: Combined([Recycling(), heads("coupled")]),
    }
    return made[name]() if name in made else heads(name)


def _heads(law: str, target: Any, params: SamplingParams) -> Any:
    """Return random heads on the target: their bad guesses must not show in the output."""
    import torch

    from mtp_verify.drafters import Heads
    from mtp_verify.heads import ParallelHead, Sizes, family
    from mtp_verify.verifier.growers import TreeShape

    config = target.config
    same = ("hidden_size", "vocab_size", "intermediate_size", "head_dim")
    sizes = Sizes(
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        **{name: getattr(config, name) for name in same},
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        head = ParallelHead(family("medusa").replace(sizes=sizes, num_modules=NUM_DRAFTS))
        for weight in head.parameters():
            weight.normal_(std=0.15)
    shape = TreeShape.paths(2, NUM_DRAFTS) if law == "paths" else TreeShape.by_depth(2, 1)
    drawn: dict[str, Any] = {"law": "iid" if law == "paths" else law, "params": params}
    # Greedy heads draw nothing: at temperature 0 the same tree is the most likely tokens'.
    drawn = {"law": "deterministic"} if params.is_greedy else drawn
    return Heads(head.attach(target).eval(), shape=shape, **drawn)


def _planner(mode: str) -> Any:
    """Plan by stated costs: measured ones would make a seed's strings depend on the machine."""
    from mtp_verify.decoder.planning import Costs, Planner

    return Planner(Costs({1: {1: 1.0, 2: 1.3, 4: 2.2}})) if mode == "planned" else None


def _constraint(checkpoints: Checkpoints, setting: Setting) -> Any:
    from mtp_verify.certification.grammar import FollowConstraint

    follow = setting.allowed(checkpoints.target_model.config.vocab_size)
    return None if follow is None else FollowConstraint(follow, setting.eos)


def decoder_loop(
    checkpoints: Checkpoints, mode: str, params: SamplingParams, setting: Setting
) -> Sample:
    """Return a sampler by `mv.Decoder`, `setting.batch` requests at a time."""
    from mtp_verify.decoder.decode import Decoder, Paged

    name, rule = MODES[mode]
    size = setting.batch or 1
    drafter = _drafter(name, checkpoints, params)
    constraint = _constraint(checkpoints, setting)

    def made(length: int) -> Any:
        longest = length + setting.num
        pools = {
            "paged": Paged(size * -(-longest // 4), block_size=4, prefix_cache=True),
            # One string fits and no more: drafts fit by chance, and sequences wait.
            "tight": Paged(longest - 1, block_size=1),
        }
        return Decoder(
            checkpoints.target_model, drafter, params, rule, lossy=LOSSY.get(mode),
            max_batch=size, cache=pools.get(setting.cache), planner=_planner(mode),
        )  # fmt: skip

    decoders: dict[int, Any] = {}  # by length of prompt
    options: dict[str, Any] = {"max_new_tokens": setting.num, "constraint": constraint}
    options["eos_token_id"] = () if setting.eos is None else setting.eos

    def served(decoder: Any, prompt: Sequence[int], seeds: Sequence[int]) -> list[list[int]]:
        numbers = [decoder.submit(list(prompt), seed=seed, **options) for seed in seeds]
        while decoder.num_unfinished:
            decoder.step()
        found = decoder.results()
        for number in numbers:
            _refuse_all_but_dead_ends(found[number].errors[0])
        return [list(found[number].tokens[0]) for number in numbers]

    def alone(decoder: Any, prompt: Sequence[int], seed: int) -> list[int]:
        from transformers import StaticCache

        room = len(prompt) + setting.num - 1
        cache = StaticCache(config=checkpoints.target_model.config, max_cache_len=room)
        kept = _Kept()
        try:
            kinds = {"past_key_values": cache, "streamer": kept}
            decoder.generate(list(prompt), seed=seed, **options, **kinds)
        except NumericsError as error:
            _refuse_all_but_dead_ends(error)
        return kept.tokens

    def sample(prompt: Sequence[int], n: int, seed: int) -> Any:
        seeds = [derive_seed(seed, row) for row in range(n)]
        if len(prompt) not in decoders:
            decoders[len(prompt)] = made(len(prompt))
        decoder = decoders[len(prompt)]
        if setting.cache == "static":
            return filled_up([alone(decoder, prompt, own) for own in seeds], setting.num)
        # In step with each other they run out of memory at once; else they join as others end.
        group = size if setting.cache == "tight" else n
        parts = [seeds[start : start + group] for start in range(0, n, group)]
        found = [tokens for part in parts for tokens in served(decoder, prompt, part)]
        return filled_up(found, setting.num)

    return sample


class _Kept:
    """A streamer that keeps what is emitted."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._is_prompt = True

    def put(self, tokens: Any) -> None:
        """Take the prompt, then the tokens of each step."""
        if not self._is_prompt:
            self.tokens += tokens.tolist()
        self._is_prompt = False

    def end(self) -> None:
        """Nothing is to be done."""


def _refuse_all_but_dead_ends(error: Exception | None) -> None:
    """Raise an error, unless it is a dead end of the grammar, where a string may end."""
    if error is not None and getattr(error, "slug", None) != "dead_end":
        raise error


def drop_in_loop(
    checkpoints: Checkpoints, mode: str, params: SamplingParams, setting: Setting
) -> Sample:
    """Return a sampler by transformers' `generate(custom_generate=mv.hf.speculative(...))`."""
    from mtp_verify.integrations import hf

    name, rule = MODES[mode]
    drafter = _drafter(name, checkpoints, params)
    constraint, cache = _constraint(checkpoints, setting), setting.cache
    paged = "paged" if cache == "paged" else None
    options: dict[str, Any] = {"lossy": LOSSY.get(mode), "cache": paged}
    options |= {"planner": _planner(mode), "constraint": constraint}
    options = {"custom_generate": hf.speculative(drafter, rule, **options)}
    options |= {"cache_implementation": "static"} if cache == "static" else {}
    batch = setting.batch or 1
    return generate_loop(checkpoints.target_model, params, setting, options, batch=batch)


def patched(sample: Sample) -> Sample:
    """Return the same sampler with transformers' accept function replaced by `mv.hf.patch()`."""

    def inside(prompt: Sequence[int], n: int, seed: int) -> Any:
        from mtp_verify.integrations import hf

        with hf.patch():
            return sample(prompt, n, seed)

    return inside
