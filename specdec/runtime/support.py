"""Which Hugging Face models can be a target or a draft model, as far as they say so themselves."""

from __future__ import annotations

from typing import Any

ATTENTION_KINDS = {"full_attention", "sliding_attention"}


def refuse_unsupported(module: Any) -> None:
    """Raises ValueError, with the reason, for a model that cannot be a target or a draft model."""
    reason = why_not(module)
    if reason is not None:
        raise ValueError(f"{type(module).__name__} {reason}")


def why_not(module: Any) -> str | None:
    """What keeps a model from running on our cache, and what to do about it; None if nothing does."""
    if not hasattr(module, "can_generate") or not module.can_generate():
        return "is no Hugging Face model with a language modelling head: pass a ...ForCausalLM"
    config = module.config.get_text_config()
    if getattr(module.config, "is_encoder_decoder", False):
        return "is an encoder-decoder: a decoder-only model is needed"
    kinds = sorted(set(getattr(config, "layer_types", None) or ()) - ATTENTION_KINDS)
    if getattr(module, "_is_stateful", False) or kinds:
        return (
            f"has recurrent or other state ({', '.join(kinds) or 'no key-value cache'}) that cannot be "
            "rolled back by length when drafts are rejected: choose a model with attention in every layer"
        )
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "caps its attention logits, which is not supported: choose another model"
    if not getattr(module, "_supports_attention_backend", False) or not hasattr(config, "num_hidden_layers"):
        return "does not use transformers' attention interface, which the cache needs: choose another model"
    return None
