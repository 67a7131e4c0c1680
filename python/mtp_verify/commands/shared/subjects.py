"""The models that commands run: SmolLM2, a local checkpoint, or a tiny random one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtp_verify.commands.shared.targets import language_class
from mtp_verify.errors import MtpVerifyError, ParamsError, UnsupportedModelError
from mtp_verify.verifier.api import build_info
from mtp_verify.verifier.files import check_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mtp_verify.commands.shared.threads import ThreadReport
    from mtp_verify.decoder.planning import Planner

__all__ = ["Subject", "planner_for", "subject_for", "versions"]


@dataclass(frozen=True)
class Subject:
    """A model with its text side.

    Attributes:
        load: From the name of a dtype to a model in evaluation mode.
        encode: From a user's message to the prompt's ids, chat template included.
        encode_raw: From a text to its ids.
        decode: From ids to text, special tokens left out.
        load_head: From a loaded model to the draft head that was asked for (`is_head_given`), or
            else to the one that is installed for it; None where there is neither.
    """

    name: str
    load: Callable[[str], Any]
    encode: Callable[[str], list[int]]
    encode_raw: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    load_head: Callable[[Any], Any] | None = None
    is_head_given: bool = False

    def check_drafter(self, name: str | None) -> str:
        """Return `name` if the drafter of that name and the heads that there are go together.

        None stands for "head" if there is one, else for "suffix".

        Raises:
            ParamsError: it is "head", and there is none; or a head was given for another drafter.
        """
        name = name or ("suffix" if self.load_head is None else "head")
        message = ""
        if name == "head" and self.load_head is None:
            message = f"there is no trained head for {self.name}; give --head, or another drafter"
        elif name != "head" and self.is_head_given:
            message = f"--drafter {name} makes no use of what --head gives; leave one of them out"
        if message:
            raise ParamsError(message, slug="bad_options")
        return name

    def prepare(self, dtype: str, tell: Callable[[str], None]) -> tuple[Any, ThreadReport]:
        """Load the model, fused, and set the best number of threads, telling what is done."""
        from mtp_verify.commands.shared import threads
        from mtp_verify.models.cpu.fused import fuse

        tell("loading the model")
        model = self.load(dtype)
        fuse(model)
        tell("choosing the number of threads")
        return model, threads.use_best(model)

    def head_for(self, model: Any) -> Any | None:
        """Load the draft head for a loaded model, fused; None where there is none."""
        from mtp_verify.models.cpu.fused import fuse

        if self.load_head is None:
            return None
        head = self.load_head(model)
        fuse(head)
        return head


def versions() -> dict[str, str]:
    """Return the versions of what figures of speed depend on."""
    import torch
    import transformers

    return {
        "mtp_verify": build_info()["version"],
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
    }


def planner_for(model: Any) -> Planner:
    """Return a planner by measured costs: a drafter that costs more than it saves is left out."""
    from mtp_verify.decoder.planning import MeasuredCosts, Planner
    from mtp_verify.models.target import as_target

    costs = MeasuredCosts(as_target(model))
    costs.forward(1)
    return Planner(costs)


def subject_for(
    *, folder: str | None = None, tiny: bool = False, head: str | None = None
) -> Subject:
    """Return the checkpoint in `folder`, else a tiny random model, else SmolLM2.

    `head` is a trained or published draft head for it, as `mtp_verify.heads.load` reads it.

    Raises:
        ImportError: A library or the packaged model is missing; says what to install.
        ParamsError: `folder` holds what is no file, such as a named pipe.
        OSError: `folder` holds no checkpoint that transformers can read, or there is no `head`.
    """
    message = ""
    if head is not None and not Path(head).exists():
        message = f"--head {head}: no such file or folder (heads are never downloaded)"
    elif folder is not None and not Path(folder).is_dir():
        message = f"--model {folder}: no such folder (models are never downloaded)"
    if message:
        raise FileNotFoundError(message)
    small = _tiny if tiny else _smollm2
    subject = small() if folder is None else _checkpoint(Path(folder))
    if head is None:
        return subject
    return replace(subject, load_head=partial(_head, head), is_head_given=True)


def _head(path: str, model: Any) -> Any:
    """Load a draft head for a model; `UnsupportedModelError` says why there is none."""
    from mtp_verify import heads

    try:
        return heads.load(path, model)
    except MtpVerifyError as error:
        message = f"--head {path} cannot draft for this model: {error}"
        raise UnsupportedModelError(message, slug=error.slug) from error


def _smollm2() -> Subject:
    from mtp_verify.integrations import smollm2

    def load(dtype: str) -> Any:
        return smollm2.load(dtype)[0]

    subject = _with_tokenizer("SmolLM2-135M-Instruct", load, smollm2.load("bfloat16")[1])
    return replace(subject, load_head=smollm2.load_head if smollm2.has_head() else None)


def _checkpoint(folder: Path) -> Subject:
    import torch
    from transformers import AutoConfig, AutoTokenizer

    def load(dtype: str) -> Any:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        read = language_class(config).from_pretrained
        return read(folder, dtype=getattr(torch, dtype), local_files_only=True).eval()

    check_folder(folder)
    if not (folder / "config.json").is_file():
        message = f"{folder}: found no config.json, wanted a folder that save_pretrained wrote"
        raise FileNotFoundError(message)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except ValueError as error:
        message = f"{folder}: transformers finds no tokenizer in it: {str(error).splitlines()[0]}"
        raise OSError(message) from error
    return _with_tokenizer(folder.name, load, tokenizer)


def _with_tokenizer(name: str, load: Callable[[str], Any], tokenizer: Any) -> Subject:
    def encode(text: str) -> list[int]:
        if not tokenizer.chat_template:
            return encode_raw(text)
        message = [{"role": "user", "content": text}]
        shaped = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        return list(tokenizer(shaped, add_special_tokens=False)["input_ids"])

    def encode_raw(text: str) -> list[int]:
        return list(tokenizer(text)["input_ids"])

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    return Subject(name, load, encode, encode_raw, decode)


def _tiny() -> Subject:
    """Return a random Llama over bytes: two layers, the same weights every time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
    )

    def load(dtype: str) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()

    def encode(text: str) -> list[int]:
        return list(text.encode())

    def decode(ids: Sequence[int]) -> str:
        return bytes(ids).decode("latin-1")

    return Subject("tiny random model", load, encode, encode, decode)
