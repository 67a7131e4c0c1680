"""JSON by schema from SmolLM2, with xgrammar and llguidance: valid, and how fast with drafts.

Two hundred prompts (ten schemas, twenty subjects each). Per library every prompt is decoded with
drafts, in batches; the first `--timed` of them one at a time as well, plain and with drafts in
turns, for the speeds. Each output is parsed and held against its schema.

    python benches/json_schema.py --json build/bench/json_schema.json
"""

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import mtp_verify as mv
from mtp_verify.decoder.decode import Decoder, Stats
from mtp_verify.integrations import smollm2

SUBJECTS = (
    "a bakery in Lisbon", "the river Danube", "a mountain bike", "an owl", "a chess tournament",
    "the planet Saturn", "a lighthouse", "a cup of green tea", "a night train", "a violin",
    "a desert town", "a software release", "a library card", "a thunderstorm", "a football match",
    "an apple tree", "a museum visit", "a used car", "a language course", "a ferry to an island",
)  # fmt: skip


def text(length: int) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": length}


def number(low: int, high: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": high}


def choice(*words: str) -> dict[str, Any]:
    return {"enum": list(words)}


def record(**fields: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
    }


SCHEMAS = (
    record(name=text(20), kind=choice("place", "thing", "event"), score=number(1, 10)),
    record(title=text(24), year=number(1900, 2030), in_stock={"type": "boolean"}),
    record(label=text(16), tags={"type": "array", "items": text(10), "minItems": 1, "maxItems": 3}),
    record(name=text(20), position=record(x=number(0, 99), y=number(0, 99))),
    record(summary=text(40), mood=choice("good", "neutral", "bad")),
    record(sizes={"type": "array", "items": number(0, 50), "minItems": 2, "maxItems": 4}),
    record(owner=text(16), active={"type": "boolean"}, level=choice("low", "middle", "high")),
    record(day=choice("Monday", "Wednesday", "Friday"), hour=number(0, 23), place=text(20)),
    record(colour=choice("red", "green", "blue"), price=number(1, 500), note=text(24)),
    record(first=text(12), second=text(12), related={"type": "boolean"}),
)


def is_valid(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value obeys; only the keywords used above."""
    if "enum" in schema:
        return value in schema["enum"]
    kind = schema["type"]
    if kind == "object":
        fields = schema["properties"]
        return (
            isinstance(value, dict)
            and value.keys() == fields.keys()
            and all(is_valid(value[name], fields[name]) for name in fields)
        )
    if kind == "array":
        return (
            isinstance(value, list)
            and schema["minItems"] <= len(value) <= schema["maxItems"]
            and all(is_valid(item, schema["items"]) for item in value)
        )
    if kind == "string":
        return isinstance(value, str) and schema["minLength"] <= len(value) <= schema["maxLength"]
    if kind == "integer":
        return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
    return isinstance(value, bool)


def obeys(output: str, schema: dict[str, Any]) -> bool:
    try:
        return is_valid(json.loads(output), schema)
    except json.JSONDecodeError:
        return False


def prompts(tokenizer: Any, count: int) -> list[tuple[list[int], dict[str, Any]]]:
    """Token ids and schema of each prompt; neighbours have different schemas."""
    pairs = [(subject, schema) for subject in SUBJECTS for schema in SCHEMAS][:count]
    return [
        (
            tokenizer(
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": f"Describe {subject} as JSON. Keys and values: "
                      f"{json.dumps(schema['properties'])}"}],
                    add_generation_prompt=True, tokenize=False,
                ),
                add_special_tokens=False,
            )["input_ids"],
            schema,
        )
        for subject, schema in pairs
    ]  # fmt: skip


def compilers(tokenizer: Any) -> dict[str, Any]:
    """Per library a function from a schema to its constraint; both with JSON's usual spaces."""
    by_xgrammar = mv.constraints.XGrammar(tokenizer)
    by_llguidance = mv.constraints.LLGuidance(tokenizer)
    spaces = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return {
        "xgrammar": lambda schema: by_xgrammar.json_schema(schema, any_whitespace=False),
        "llguidance": lambda schema: by_llguidance.json_schema(schema, **spaces),
    }


def measure(
    model: Any, tokenizer: Any, work: list[tuple[list[int], Any, Any]], options: argparse.Namespace
) -> dict[str, Any]:
    """Every prompt in batches, then some alone in turns; `work` is ids, schema and constraint."""
    params = mv.SamplingParams(temperature=options.temperature)
    decoders = {
        "plain": Decoder(model, None, params),
        "drafts": Decoder(model, mv.drafters.Suffix(), params),
    }
    limit = options.max_new_tokens
    valid, batched = 0, Stats()
    for start in range(0, len(work), options.batch):
        part = work[start : start + options.batch]
        result = decoders["drafts"].generate(
            [ids for ids, _, _ in part], max_new_tokens=limit, seed=start,
            constraint=[constraint for _, _, constraint in part],
        )  # fmt: skip
        batched.merge(result.stats)
        for tokens, (_, schema, _) in zip(result.tokens, part, strict=True):
            output = tokenizer.decode(tokens, skip_special_tokens=True)
            if obeys(output, schema):
                valid += 1
            else:
                print(f"not valid: {output!r}", flush=True)
    spent = dict.fromkeys(decoders, 0.0)
    alone = {name: Stats() for name in decoders}
    same = 0
    for index, (ids, _, constraint) in enumerate(work[: options.timed]):
        outputs = []
        for name in sorted(decoders, reverse=index % 2 == 1):
            began = time.perf_counter()
            result = decoders[name].generate(
                ids, max_new_tokens=limit, seed=index, constraint=constraint
            )
            spent[name] += time.perf_counter() - began
            alone[name].merge(result.stats)
            outputs.append(result.tokens)
        same += outputs[0] == outputs[1]
    speed = {name: alone[name].emitted / spent[name] for name in decoders}
    return {
        "prompts": len(work),
        "valid": valid,
        "tau_batched": batched.tau,
        "timed": options.timed,
        "same_tokens": same,
        "tau": {name: stats.tau for name, stats in alone.items()},
        "tokens_per_second": speed,
        "ratio": speed["drafts"] / speed["plain"],
        "parts": {
            name: {part: stats.share(part) for part in (*stats.seconds, "other")}
            for name, stats in alone.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--prompts", type=int, default=200, help="how many of the 200")
    parser.add_argument("--timed", type=int, default=20, help="of them also alone, in turns")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--max-new-tokens", type=int, default=120)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    model, tokenizer = smollm2.load(options.dtype)
    asked = prompts(tokenizer, options.prompts)
    print(f"SmolLM2-135M, {options.dtype}, {torch.get_num_threads()} threads, suffix drafts")
    print(f"{'':12} {'valid':>9} {'tau':>5} {'plain tok/s':>12} {'drafts tok/s':>13} {'ratio':>6}")
    lines = {}
    for name, compile_schema in compilers(tokenizer).items():
        made = [compile_schema(schema) for schema in SCHEMAS]
        work = [(ids, schema, made[SCHEMAS.index(schema)]) for ids, schema in asked]
        line = lines[name] = measure(model, tokenizer, work, options)
        speed = line["tokens_per_second"]
        share = f"{line['valid']}/{line['prompts']}"
        print(
            f"{name:12} {share:>9} {line['tau']['drafts']:5.2f} {speed['plain']:12.1f} "
            f"{speed['drafts']:13.1f} {line['ratio']:5.2f}x",
            flush=True,
        )
    report = {
        "bench": "json_schema",
        "model": "SmolLM2-135M-Instruct",
        "dtype": options.dtype,
        "temperature": options.temperature,
        "libraries": {name: version(name) for name in lines},
        "threads": torch.get_num_threads(),
        "load": os.getloadavg(),
        "machine": platform.processor() or platform.machine(),
        "build": mv.verifier.build_info(),
        "torch": torch.__version__,
        "lines": lines,
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
