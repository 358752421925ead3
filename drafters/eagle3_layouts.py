"""How EAGLE-3 heads lie on disk: by EAGLE and SpecForge, by ModelOpt, and by speculators.

D draft vocabulary, V target vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from drafters.checkpoint import Tensors
from drafters.fitting import made_for
from specdec.runtime.huggingface_layers import rotary_before

OWN, PLAIN = "midlayer.", "layers.0."  # what the layer is called: by EAGLE and SpecForge, and by all others
LAYOUTS = {"eagle3": OWN, "speculators": PLAIN}
# Variants of speculators that put norms where the published head has none.
VARIANTS = ("norm_before_fc", "fc_norm", "norm_output")
SIZES = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("hidden_act", "rms_norm_eps", "rope_parameters", "attention_bias", "mlp_bias", "max_position_embeddings"),
)


def settings_of(tensors: Tensors) -> Mapping[str, Any]:
    """The sizes of the layer. Raises ValueError where there are none, or it is another kind of head."""
    settings = tensors.sizes("transformer_layer_config")
    if variants := [name for name in VARIANTS if tensors.config.get(name)]:
        raise ValueError(f"{tensors.file} is an EAGLE-3 with {', '.join(variants)}, which is not supported")
    return {**settings, **made_for(tensors.config)}


def layers_of(config: dict[str, Any]) -> tuple[int, ...] | None:
    """How many layers of the target run before each state, None where the checkpoint leaves it to the paper.

    ModelOpt, SpecForge and SGLang, in ``eagle_config``, number the layer whose output it is; vLLM and speculators,
    at the top, the layer whose input it is.
    """
    inner = (config.get("eagle_config") or {}).get("eagle_aux_hidden_state_layer_ids")
    outer = config.get("eagle_aux_hidden_state_layer_ids")
    if inner:
        return tuple(int(layer) + 1 for layer in inner)
    return tuple(int(layer) for layer in outer) if outer else None


def numbered(layers: Sequence[int]) -> dict[str, Any]:
    """What ``layers_of`` reads, for either kind of reader."""
    name = "eagle_aux_hidden_state_layer_ids"
    return {name: list(layers), "eagle_config": {name: [layer - 1 for layer in layers]}}


def ids_of(tensors: Tensors, known: int, vocabulary: int) -> Tensor | None:
    """int64 [D], ids of the draft vocabulary in the target's, None where it is all of it.

    ``d2t`` holds what is to be added to a draft id; ``t2d``, where there is one, says the same as a mask.
    """
    if "d2t" not in tensors.left:
        if known != vocabulary:
            raise ValueError(
                f"{tensors.file} lacks d2t: its head knows {known} of {vocabulary} tokens, but not which"
            )
        return None
    ids_D = tensors.take("d2t", (known,)).to(torch.int64) + torch.arange(known)
    if "t2d" in tensors.left:
        mask_V = tensors.take("t2d", (vocabulary,)).bool()
        if mask_V.nonzero()[:, 0].tolist() != sorted(ids_D.tolist()):
            raise ValueError(f"d2t and t2d in {tensors.file} disagree about the draft vocabulary")
    return ids_D


def described(sizes: Mapping[str, Any], layout: str, target: str) -> dict[str, Any]:
    """What ``config.json`` says of the sizes and the kind of head in a layout."""
    if layout == "eagle3":
        return {"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", **sizes}
    return {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "transformer_layer_config": {"model_type": "llama", **sizes},
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 5}],
            "verifier": {"name_or_path": target, "architectures": []},
        },
    }


def config_of(head: Any, layout: str, target: str) -> dict[str, Any]:
    """``config.json`` of a head in a layout, for a target of some name."""
    sizes = {name: getattr(head.config, name) for name in SIZES} | rotary_before(head.config)
    sizes |= {"vocab_size": head.vocab_size, "num_hidden_layers": 1, "tie_word_embeddings": False}
    config = described(sizes, layout, target) | {
        "draft_vocab_size": len(head.ids),
        "target_hidden_size": head.target_hidden,
        "norm_before_residual": head.midlayer.norm_before_residual,
        "torch_dtype": str(head.fc.weight.dtype).removeprefix("torch."),
    }
    return config | ({} if head.layers is None else numbered(head.layers)) | made_for(vars(head.config))


def mapping(ids_D: Tensor, vocabulary: int) -> dict[str, Tensor]:
    """``d2t`` and ``t2d`` of a draft vocabulary."""
    mask_V = torch.zeros(vocabulary, dtype=torch.bool).index_fill(0, ids_D, True)
    return {"d2t": ids_D - torch.arange(len(ids_D)), "t2d": mask_V}
