"""The published families of draft heads, one record each.

Feeds and recycles are those of vLLM 0.32 where engines differ; `disputed` names the fields that
SGLang 0.5 or transformers 5.23 sees otherwise. Names are those of the released checkpoints.
"""

from __future__ import annotations

from mtp_verify.errors import ParamsError
from mtp_verify.heads.spec import HeadSpec, Layout
from mtp_verify.verifier.intake import check_type, shown

__all__ = ["FAMILIES", "OTHER_LAYOUTS", "family"]

_NEXTN = ("num_nextn_predict_layers", "num_mtp_layers")

# DeepSeek's names, which most families took over.
_DEEPSEEK = {
    "embed_norm": "enorm",
    "hidden_norm": "hnorm",
    "fusion": "eh_proj",
    "output_norm": "shared_head.norm",
    "output": "shared_head.head",
    "embedding": "embed_tokens",
    "block": "",
}
_FINAL = {**_DEEPSEEK, "output_norm": "final_layernorm"}
_QWEN = {
    "embed_norm": "pre_fc_norm_embedding",
    "hidden_norm": "pre_fc_norm_hidden",
    "fusion": "fc",
    "output_norm": "norm",
    # Modules share the parts above and have a block each.
    "block": "layers.{i}.",
}


def _mtp(
    name: str,
    model_types: tuple[str, ...] = (),
    prefix: str = "model.layers.{layer}.",
    names: dict[str, str] | None = None,
    count_keys: tuple[str, ...] = _NEXTN,
    renames: dict[str, str] | None = None,
    infix: str = "",
    **fields: object,
) -> HeadSpec:
    layout = Layout(
        prefix, names or _DEEPSEEK, renames or {}, infix, count_keys, model_types or (name,)
    )
    return HeadSpec(name, **{"block": "target", "layout": layout, **fields})  # type: ignore[arg-type]


_RECYCLE = ("recycle",)
_EAGLE3 = {
    "feature_norm_all": "input_norm",
    "feature_norm_each": "fc_norm.{j}",
    "output_norm": "norm",
    "output": "lm_head",
    "embedding": "embed_tokens",
}

_LIST = (
    # ---- modules inside a target's checkpoint, causal
    _mtp("deepseek_v3", ("deepseek_v3", "deepseek_v32", "openpangu_ultra_moe"), zero_first=True,
         disputed=("zero_first",)),
    _mtp("glm4_moe", ("glm4_moe", "glm4v_moe"), recycle="pre", disputed=_RECYCLE),
    _mtp("glm4_moe_lite", recycle="pre", disputed=_RECYCLE),
    _mtp("glm_ocr", prefix="model.language_model.layers.{layer}.", recycle="pre",
         disputed=_RECYCLE),
    _mtp("glm_moe_dsa", ("glm_moe_dsa", "glm5_next")),
    _mtp("kimi_k3", prefix="language_model.model.layers.{layer}.", recycle="pre",
         disputed=_RECYCLE),
    _mtp("dots3_note", names={**_DEEPSEEK, "embedding": "/model.mtp.embed_tokens"}),
    _mtp("hunyuan_v3", ("hy_v3",), names=_FINAL),
    _mtp("hunyuan_v4", ("hy_v4",), prefix="model.mtp_layers.{i}.", names=_FINAL),
    _mtp("bailing", ("bailing_hybrid", "bailing_moe", "bailing_moe_v2"), names=_FINAL),
    _mtp("mimo", prefix="model.mtp_layers.{i}.", fusion="he", feed="pre", block="llama",
         zero_first=True, disputed=("feed", "zero_first"),
         names={"embed_norm": "token_layernorm", "hidden_norm": "hidden_layernorm",
                "fusion": "input_proj", "output_norm": "final_layernorm", "block": ""}),
    _mtp("mimo_v2", ("mimo_v2", "mimo_v2_flash"), prefix="model.mtp.layers.{i}.", count_keys=(),
         names=_FINAL, renames={"post_attention_layernorm": "pre_mlp_layernorm"}),
    _mtp("qwen3_next", prefix="mtp.", names=_QWEN, norm_kind="rms1p"),
    _mtp("qwen3_5", ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "intern_s2"),
         prefix="mtp.", names=_QWEN, norm_kind="rms1p",
         count_keys=("mtp_num_hidden_layers", *_NEXTN)),
    _mtp("exaone_moe", ("exaone_moe", "exaone4_5"), prefix="mtp.", names=_QWEN),
    _mtp("mellum", prefix="mtp.", names=_QWEN),
    _mtp("ernie4_5_moe", prefix="", block="llama", output_norm=False,
         names={"embed_norm": "model.mtp_emb_norm.{i}", "hidden_norm": "model.mtp_hidden_norm.{i}",
                "fusion": "model.mtp_linear_proj.{i}", "block": "model.mtp_block.{i}."}),
    _mtp("longcat_flash", prefix="model.mtp.", own_embedding=True, count_keys=(),
         names={"embed_norm": "layers.0.enorm.m", "hidden_norm": "layers.0.hnorm.m",
                "fusion": "layers.0.eh_proj", "output_norm": "norm", "embedding": "embed_tokens",
                "block": "layers.0."},
         block="foreign", obstacle="its block is one half of the target's double layer"),
    _mtp("step3p5", ("step3p5", "step3p7"), feed="pre", recycle="pre", norm_kind="rms1p",
         output_head="own", disputed=_RECYCLE,
         names={**_DEEPSEEK, "output": "shared_head.output"}, infix="transformer."),
    _mtp("minimax_m3", ("minimax_m3", "minimax_m3_vl"), prefix="model.mtp.layers.{i}.",
         recycle="pre", norm_kind="rms1p", count_keys=("num_mtp_modules", *_NEXTN),
         names={**_FINAL, "block": "transformer_layer."}),
    _mtp("nemotron_h", prefix="mtp.layers.{i}.", names=_FINAL, block="foreign",
         obstacle="one step of it spans several sublayers of the hybrid pattern"),
    _mtp("inkling", ("inkling", "inkling2"), prefix="model.mtp.layers.{i}.", fusion="he",
         names={"embed_norm": "embed_norm", "hidden_norm": "hidden_norm", "fusion": "input_proj",
                "output_norm": "/model.mtp.chain_norm", "block": "transformer_block."},
         block="foreign", obstacle="its positions are learned biases of the attention"),
    _mtp("deepseek_v4", prefix="mtp.{i}.", feed="streams", fusion="sum", block="foreign",
         names={**_DEEPSEEK, "embed_proj": "e_proj", "hidden_proj": "h_proj"},
         obstacle="its hidden state is several streams of hyper-connections"),
    _mtp("qwen4_exp", prefix="mtp.", feed="streams", fusion="sum", block="foreign",
         names={**_QWEN, "embed_proj": "fc_embedding", "hidden_proj": "fc_hidden"},
         count_keys=("mtp_num_hidden_layers", *_NEXTN),
         obstacle="its hidden state is several streams of hyper-connections"),
    _mtp("gemma4_assistant", prefix="", fusion="eh", embed_norm=False, hidden_norm=False,
         names={"fusion": "pre_projection", "output_norm": "norm", "recycle": "post_projection",
                "block": "layers.{l}."},
         block="foreign", obstacle="it reads the target's own keys and values"),
    # ---- heads in repositories of their own, causal
    HeadSpec(
        "eagle", embed_norm=False, hidden_norm=False, input_norm=False, output_norm=False,
        layout=Layout(
            names={"fusion": "fc", "embed_norm": "embedding_layernorm",
                   "hidden_norm": "hidden_states_layernorm", "embedding": "embed_tokens",
                   "output": "lm_head", "block": "layers.{l}."},
        ),
    ),
    HeadSpec(
        "eagle3", feed="aux", recycle="pre", fusion="attention",
        output_head="own",
        layout=Layout(
            names={"features": "fc", "embed_norm": "midlayer.input_layernorm",
                   "hidden_norm": "midlayer.hidden_norm", "block": "midlayer.", **_EAGLE3},
        ),
    ),
    # ---- parallel
    HeadSpec(
        "medusa", kind="parallel", fusion="none", embed_norm=False, hidden_norm=False,
        output_norm=False, block="residual", output_head="own", num_modules=4,
        layout=Layout(prefix="{i}.", names={"block": "{l}.", "output": "{n}"},
                      count_keys=("medusa_num_heads",)),
    ),
    HeadSpec(
        "hydra", kind="parallel", fusion="eh", embed_norm=False, hidden_norm=False,
        output_norm=False, block="residual", num_modules=4,
    ),
    HeadSpec(
        "meta", kind="parallel", fusion="none", embed_norm=False, hidden_norm=False, feed="aux",
        num_modules=3,
    ),
)  # fmt: skip

FAMILIES: dict[str, HeadSpec] = {spec.family: spec for spec in _LIST}

# Further layouts of a family, by the name under which `export` knows them.
OTHER_LAYOUTS: dict[str, dict[str, Layout]] = {
    "eagle3": {
        "speculators": Layout(
            names={"features": "fc", "embed_norm": "layers.0.input_layernorm",
                   "hidden_norm": "layers.0.hidden_norm", "block": "layers.{l}.", **_EAGLE3},
        ),
    },
    "medusa": {
        "vllm": Layout(
            names={"block": "blocks.{i}.layers.{l}.", "output": "lm_heads.{i}"},
            renames={"linear.weight": "weight", "linear.bias": "bias"},
        ),
    },
}  # fmt: skip


def family(name: str) -> HeadSpec:
    """The record of a family.

    Raises:
        ParamsError: no such family; lists them.

    Example:
        >>> family("eagle").output_norm
        False
    """
    check_type("name", name, str)
    if name not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        msg = f"name: no family of heads is called {shown(name)}; known are: {known}"
        raise ParamsError(msg, slug="unknown_family")
    return FAMILIES[name]
