"""Which networks are Llama-like, and what they need to run in seven kernels a layer.

Nothing goes by a class's name: a network is taken for what its parts say, and then has to give the answer that
it gave before.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from specdec.runtime.attention import sliding
from specdec.runtime.lean import LeanLayer, LeanNetwork
from specdec.runtime.likeness import ends_likeness, likeness
from specdec.runtime.sight import Sight

log = logging.getLogger(__name__)

LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
NORMS = {"q_norm", "k_norm"}
MLP = {"gate_proj", "up_proj", "down_proj"}
ROTARY = {"default", "linear", "llama3", "yarn"}  # those whose angles depend on the position alone
PROBE = 8  # tokens of the comparison
STRICT = 1e-2  # how far a layer's answers may lie apart in float32, where only another order of sums tells
FAR = 1 << 30  # a row longer than any sliding window


def fuse(module: Any, config: Any) -> LeanNetwork | None:
    """The network with its projections packed, None if it is of another kind.

    Weights are packed in place: each parameter becomes a view of the packed one, under its old name, so that
    state dicts are read and written as before and no weight is there twice.
    """
    if not looks_right(module, config):
        return None
    try:
        with torch.no_grad():
            network = packed(module, config)
            gap = likeness(module, network)
            if not gap <= STRICT:  # nor is anything that is no number
                raise ValueError(f"a layer's answer differs by {gap:.2g}")
            gap = ends_likeness(module, network)
            if not gap <= STRICT:
                raise ValueError(f"what is before or behind its layers differs by {gap:.2g}")
            gap = distance(module, network)
    except ValueError as error:
        log.info("%s is not run by the fused kernels: %s", type(module).__name__, error)
        return None
    except Exception as error:  # whatever a compiler makes of shapes that it has not met
        log.warning("%s is not run by the fused kernels: %s", type(module).__name__, error, exc_info=error)
        return None
    if not gap <= tolerance(module.dtype):  # nor is anything that is no number
        log.info("%s is not run by the fused kernels: its logits differ by %.2g", type(module).__name__, gap)
        return None
    return network


def tolerance(dtype: torch.dtype) -> float:
    """How far logits may lie apart, relative to their size: what is missing or scaled elsewhere shows more.

    Rounding makes 0.07 after thirty layers in bfloat16.
    """
    return 0.15 if dtype in (torch.bfloat16, torch.float16) else 1e-3


def looks_right(module: Any, config: Any) -> bool:
    """Whether every part has the names and kinds of a Llama-like network."""
    base, rotary = module.get_decoder(), getattr(config, "rope_parameters", None) or {}
    whole = {"embed_tokens", "layers", "norm", "rotary_emb"} <= {name for name, _ in base.named_children()}
    layers = all(is_plain(layer) for layer in getattr(base, "layers", [None]))
    known = rotary.get("rope_type", "default") in ROTARY and getattr(config, "max_position_embeddings", None)
    head = module.get_output_embeddings()
    return bool(whole and layers and known and type(head) is nn.Linear and head.bias is None)


def is_plain(layer: Any) -> bool:
    """Whether a decoder layer has the parts of Llama's, and no others."""
    parts = dict(layer.named_children()) if isinstance(layer, nn.Module) else {}
    if set(parts) != LAYER:
        return False
    attention, mlp = (dict(parts[name].named_children()) for name in ("self_attn", "mlp"))
    linears = [*(attention.get(name) for name in ATTENTION), *(mlp.get(name) for name in MLP)]
    return (
        ATTENTION <= set(attention) <= ATTENTION | NORMS
        and MLP <= set(mlp) <= MLP | {"act_fn"}
        and all(type(linear) is nn.Linear for linear in linears)
        and all(getattr(linear, "bias", None) is None for linear in linears[4:])
    )


def packed(module: Any, config: Any) -> LeanNetwork:
    """The network's weights, those that read the same input side by side."""
    base = module.get_decoder()
    attention = base.layers[0].self_attn
    embed = base.embed_tokens.weight
    where_1S = torch.arange(config.max_position_embeddings, device=embed.device)[None]
    cosines, sines = (table[0].contiguous() for table in base.rotary_emb(embed[:1, None], where_1S))
    return LeanNetwork(
        embed=embed.data,
        layers=tuple(lean_layer(layer, index) for index, layer in enumerate(base.layers)),
        norm=base.norm.weight.data,
        head=module.get_output_embeddings().weight.data,
        cosines=cosines,
        sines=sines,
        epsilon=float(getattr(base.norm, "variance_epsilon", getattr(base.norm, "eps", 0.0))),
        scale=float(getattr(attention, "scaling", attention.head_dim**-0.5)),
        overlap=embed.is_cuda and torch.cuda.get_device_capability(embed.device) >= (9, 0),
    )


def lean_layer(layer: Any, index: int) -> LeanLayer:
    """One layer's weights."""
    attention, mlp = layer.self_attn, layer.mlp
    norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    qkv = [attention.q_proj, attention.k_proj, attention.v_proj]
    return LeanLayer(
        norm=layer.input_layernorm.weight.data,
        qkv=together([linear.weight for linear in qkv]),
        qkv_bias=None if qkv[0].bias is None else together([linear.bias for linear in qkv]),
        gains=None if norms[0] is None else torch.stack([norm.weight.data for norm in norms if norm is not None]),
        out=attention.o_proj.weight.data,
        out_bias=None if attention.o_proj.bias is None else attention.o_proj.bias.data,
        mlp_norm=layer.post_attention_layernorm.weight.data,
        gate_up=together([mlp.gate_proj.weight, mlp.up_proj.weight]),
        down=mlp.down_proj.weight.data,
        sliding=sliding(attention, index, getattr(attention, "sliding_window", None), FAR),
    )


def together(parameters: list[nn.Parameter]) -> Tensor:
    """One tensor with the rows of all; each parameter becomes a view of its own rows."""
    whole = torch.cat([parameter.data for parameter in parameters])
    start = 0
    for parameter in parameters:
        size = len(parameter)
        parameter.data = whole[start : start + size]
        start += size
    return whole


def distance(module: Any, network: LeanNetwork) -> float:
    """How far the logits of a few tokens are from the module's own, relative to their size."""
    tokens_1W = (torch.arange(PROBE, device=network.embed.device) * 7919 % len(network.embed))[None]
    expected = module(input_ids=tokens_1W, use_cache=False).logits.float()
    layer, size = network.layers[0], network.cosines.shape[1]
    heads = (layer.qkv.shape[0] - layer.out.shape[1]) // (2 * size)
    if layer.qkv.shape[0] != layer.out.shape[1] + 2 * heads * size:
        return float("inf")  # the rotation covers a part of the head only
    empty = network.embed.new_zeros(2, 1, heads, PROBE + 1, size)
    caches = [(empty[0].clone(), empty[1].clone()) for _ in network.layers]
    where_1W = torch.arange(PROBE, device=tokens_1W.device)[None]
    sight = Sight(where_1W.new_full((1,), PROBE), where_1W + 1, torch.zeros_like(where_1W), None)
    logits, _ = network(tokens_1W, where_1W, where_1W, caches, sight, PROBE)
    return float((logits.float() - expected).norm() / expected.norm())
