"""Models of real shapes with random weights, whose next token is nevertheless known: speed without checkpoints.

The head's row for the token after x is the embedding of x, and what the layers add is small, so the model
continues x -> successors[x], whatever came before. All kernels run at their real size on random numbers; on zeros
a GPU would be faster than it is.

V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from specdec.noise import philox
from specdec.runtime.byte_tokenizer import ByteTokenizer
from specdec.runtime.huggingface_files import new_model

PREFIX = "synthetic/"
SPREAD = 0.02  # standard deviation of the weights, as checkpoints start their training from
DRIFT = 0.25  # length of what all layers add to an embedding, in embeddings; the true successor wins up to 0.4
PEAK = 80.0  # logit of the successor: sampled at temperature 1, too, another token is out of reach
_CYCLE, _DIFFERING = 1, 2  # what a shuffle is for


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder, by the names that its configuration has for them."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = 8
    head_dim: int = 128
    vocab_size: int = 151936
    max_position_embeddings: int = 40960
    rope_parameters: dict[str, object] = field(
        default_factory=lambda: {"rope_type": "default", "rope_theta": 1_000_000.0}
    )


# Of the configurations that Qwen publishes. The head is not tied to the embedding, as it is in theirs up to 4B:
# that takes memory, not time, since a step reads the head whole and one row of the embedding in either case.
SHAPES = {
    "synthetic/tiny": Shape(64, 128, 2, 4, 2, head_dim=16, vocab_size=512),
    "synthetic/qwen3-0.6b": Shape(1024, 3072, 28, 16),
    "synthetic/qwen3-1.7b": Shape(2048, 6144, 28, 16),
    "synthetic/qwen3-4b": Shape(2560, 9728, 36, 32),
    "synthetic/qwen3-8b": Shape(4096, 12288, 36, 32),
    "synthetic/qwen3-14b": Shape(5120, 17408, 40, 40),
    "synthetic/qwen3-32b": Shape(5120, 25600, 64, 64),
}


@dataclass(frozen=True)
class Synthetic:
    """A model that is made, not read. Equal values give equal tokens, wherever it is made, and equal weights on
    one kind of device.

    Attributes:
        name: one of ``SHAPES``.
        agreement: share of the vocabulary after which it continues as a target of the same vocabulary does; 1 is
            the target itself.
        seed: chooses the tokens that it continues otherwise. The target does not depend on it.

    Raises:
        ValueError: an unknown shape, or an agreement that no permutation has.
    """

    name: str
    agreement: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in SHAPES:
            raise ValueError(f"there is no model {self.name!r}: choose among {', '.join(SHAPES)}")
        disagreeing(self.shape.vocab_size, self.agreement)

    @property
    def shape(self) -> Shape:
        """Its sizes."""
        return SHAPES[self.name]

    @property
    def tokenizer(self) -> ByteTokenizer:
        """A stand-in: the shape has no words."""
        return ByteTokenizer(self.shape.vocab_size)

    @property
    def successors(self) -> Tensor:
        """int64 [V]: the token that follows each token."""
        return successors(self.shape.vocab_size, self.agreement, self.seed)

    @torch.no_grad()
    def module(self, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """The model, made on its device in its type, without end tokens."""
        module = new_model("qwen3", dtype, device, **asdict(self.shape), tie_word_embeddings=False)
        fill(module, self.shape, self.successors)
        return module


def fill(module: nn.Module, shape: Shape, successors_V: Tensor) -> None:
    """Give a model its weights: random ones of the shape's scales, and a head that finds the successor."""
    parts = dict(module.named_parameters())
    embedding, head = parts.pop("model.embed_tokens.weight"), parts.pop("lm_head.weight")
    # Of its own and always from the same start: it decides no token, and the caller's generator stays where it is.
    generator = torch.Generator(embedding.device)
    for name, weight in parts.items():
        if weight.dim() > 1:
            weight.normal_(0, scales(shape).get(name.split(".")[-2], SPREAD), generator=generator)
    embedding.normal_(0, SPREAD, generator=generator)
    # Of one length, no embedding is closer to another than to itself.
    length = SPREAD * math.sqrt(shape.hidden_size)
    embedding.mul_(length / embedding.norm(dim=-1, keepdim=True))
    head.index_copy_(0, successors_V.to(head.device), embedding)
    parts["model.norm.weight"].fill_(PEAK / (math.sqrt(shape.hidden_size) * length))


def scales(shape: Shape) -> dict[str, float]:
    """Standard deviation of the two matrices that add to the residual stream, so that all layers add ``DRIFT``.

    What they add is random in direction, so its squares add up. Their inputs come from normed states (1 per
    dimension) through matrices of ``SPREAD``; silu(gate) is taken for its bound, the gate.
    """
    share = DRIFT / math.sqrt(2 * shape.num_hidden_layers)
    heads, hidden = shape.num_attention_heads * shape.head_dim, shape.hidden_size
    return {
        "o_proj": share / math.sqrt(heads * hidden),
        "down_proj": share / (SPREAD * hidden * math.sqrt(shape.intermediate_size)),
    }


def successors(size: int, agreement: float = 1.0, seed: int = 0) -> Tensor:
    """int64 [V]: a permutation of the tokens, equal to the target's on exactly round(agreement * size) of them.

    The target's depends on ``size`` alone and is a single cycle through all tokens: most permutations have short
    ones, on which text would repeat itself. The tokens that differ are chosen by ``seed`` and swap successors.

    Raises:
        ValueError: the agreement is not from 0 to 1, or leaves a single token to differ.
    """
    count = disagreeing(size, agreement)
    order = shuffled(size, _CYCLE, 0)
    target_V = torch.empty_like(order).index_copy_(0, order, order.roll(-1))
    chosen = shuffled(size, _DIFFERING, seed)[:count]
    return target_V.index_copy(0, chosen, target_V[chosen.roll(-1)])


def disagreeing(size: int, agreement: float) -> int:
    """How many tokens are continued otherwise. Raises ValueError for what ``successors`` cannot do."""
    if not 0 <= agreement <= 1:
        raise ValueError(f"agreement must be from 0 to 1, not {agreement}")
    count = size - round(agreement * size)
    if count == 1:
        raise ValueError(
            f"agreement {agreement} leaves 1 of {size} tokens to differ, but a permutation differs in none or in "
            f"two at least: choose 1 or at most {1 - 2 / size:.6f}"
        )
    return count


def shuffled(size: int, purpose: int, seed: int) -> Tensor:
    """int64 [size]: 0 to size - 1 in random order, the same on every machine."""
    zero = torch.zeros((), dtype=torch.int64)
    word = philox((torch.arange(size), zero, zero, zero + purpose), (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    return ((word[0] << 31) | (word[1] >> 1)).argsort(stable=True)
