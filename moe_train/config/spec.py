"""Defines the spec of a model: the settings that model code takes, and nothing else of a recipe.

Sizes are resolved here: a width that a recipe leaves open is a number, and every layer says itself whether it has
experts. `resolve.py` makes a `ModelSpec` of a recipe. Nothing here imports torch.
"""

from dataclasses import dataclass
from typing import Literal

from moe_train.config.kinds.depth import DepthConfig
from moe_train.config.kinds.dispatch import DispatchConfig
from moe_train.config.kinds.router.router import RouterConfig

GATED = ("swiglu", "geglu")
"""Activations that multiply two products, for which a feed-forward block has a third matrix."""


@dataclass(frozen=True)
class MoESpec:
    """Describes a Mixture-of-Experts layer; `MoEConfig` in schema.py explains settings of the same names."""

    num_experts: int
    d_model: int
    """Width of the residual stream."""
    d_ff: int
    """Hidden width of one expert."""
    shared_experts: int
    activation: str
    """Of routed and shared experts."""
    expert_dropout: float
    scale_expert_gradients: bool
    capacity_factor: float | None
    eval_capacity_factor: float | None
    capacity_convention: str
    min_capacity: int
    group_sequences: int
    router: RouterConfig
    dispatch: DispatchConfig

    @property
    def shared_width(self) -> int:
        """Returns the hidden width of all shared experts together; 0 without any."""
        return self.shared_experts * self.d_ff


@dataclass(frozen=True)
class StackSpec:
    """Describes one of a model's stacks of layers."""

    name: Literal["encoder", "decoder"]
    layers: tuple[MoESpec | None, ...]
    """The lowest first; None: a dense layer."""
    length: int
    """Tokens of a sequence."""
    is_causal: bool
    """Whether positions see no later ones."""
    reads_encoder: bool
    """Whether every layer also attends to the output of an encoder."""

    @property
    def num_layers(self) -> int:
        """Returns the number of layers, dense and MoE."""
        return len(self.layers)

    @property
    def moe(self) -> tuple[MoESpec, ...]:
        """Returns the MoE layers, the lowest first."""
        return tuple(layer for layer in self.layers if layer is not None)

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the MoE layers, counted from 0 in the stack."""
        return tuple(index for index, layer in enumerate(self.layers) if layer is not None)


@dataclass(frozen=True)
class ModelSpec:
    """Describes a transformer; `ModelConfig` in schema.py explains settings of the same names."""

    stacks: tuple[StackSpec, ...]
    """The encoder first."""
    vocabulary_size: int
    """Entries of the embedding: the tokenizer's, then those that the objective adds."""
    d_model: int
    num_heads: int
    head_width: int
    """Of one attention head's queries, keys and values."""
    d_ff: int
    """Hidden width of a dense feed-forward block."""
    activation: str
    positions: str
    dropout: float
    tied_embeddings: bool
    init_scale: float
    depth: DepthConfig

    @property
    def attention_width(self) -> int:
        """Returns the width of all heads together."""
        return self.num_heads * self.head_width

    @property
    def moe(self) -> list[MoESpec]:
        """Returns the MoE layers, the lowest first; a decoder's follow its encoder's."""
        return [layer for stack in self.stacks for layer in stack.moe]

    @property
    def moe_layers(self) -> list[int]:
        """Indices of the MoE layers, from 0; a decoder's layers follow its encoder's."""
        layers = [layer for stack in self.stacks for layer in stack.layers]
        return [index for index, layer in enumerate(layers) if layer is not None]

    @property
    def num_experts(self) -> list[int]:
        """Returns the number of experts of every MoE layer."""
        return [layer.num_experts for layer in self.moe]

    @property
    def has_causal_moe(self) -> bool:
        """Returns whether an MoE layer is in a stack whose positions must not see later ones."""
        return any(stack.is_causal and stack.moe for stack in self.stacks)
