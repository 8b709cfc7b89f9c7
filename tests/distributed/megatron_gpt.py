"""Trains megatron-core's GPT-MoE with a recipe's weights, batches and settings: an oracle of our whole model.

Its layouts are its own: sequence parallelism wherever the tensor degree is above 1, as its MoE layer demands.
D model width, E experts, F hidden width of an expert.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from megatron_facade import on_cpu
from oracle_run import STEPS, batch_of, optimizer_of
from tiny_model import share_of
from torch import Tensor, nn

from moe_train.config.resolve import spec_of
from moe_train.config.schema import Recipe
from moe_train.parallel.world import World

NAMES: dict[str, tuple[str, ...]] = {
    "embedding.word_embeddings.weight": ("embedding.weight",),
    "embedding.position_embeddings.weight": ("positions.weight",),
    "decoder.final_layernorm.weight": ("norm.weight",),
    "output_layer.weight": ("head.weight",),
    "input_layernorm.weight": ("attention_norm.weight",),
    "self_attention.linear_qkv.weight": (
        "attention.query.weight",
        "attention.key.weight",
        "attention.value.weight",
    ),
    "self_attention.linear_proj.weight": ("attention.output.weight",),
    "pre_mlp_layernorm.weight": ("feedforward_norm.weight",),
    "mlp.linear_fc1.weight": ("feedforward.w_gate.weight", "feedforward.w_in.weight"),
    "mlp.linear_fc2.weight": ("feedforward.w_out.weight",),
    "mlp.router.weight": ("feedforward.router.weight",),
    "mlp.experts.linear_fc1.weight": ("feedforward.experts.w_gate", "feedforward.experts.w_in"),
    "mlp.experts.linear_fc2.weight": ("feedforward.experts.w_out",),
    "mlp.shared_experts.linear_fc1.weight": ("shared_experts.w_gate.weight", "shared_experts.w_in.weight"),
    "mlp.shared_experts.linear_fc2.weight": ("shared_experts.w_out.weight",),
}
"""The names of a checkpoint of ours for each of theirs, without the layer. What a model lacks is left out."""

BLOCK = re.compile(r"decoder\.(layers\.\d+\.)(.*)")
EXPERT = re.compile(r"local_experts\.(\d+)\.")


def train_megatron(
    world: World, recipe: Recipe, weights: Mapping[str, Tensor], *, tensor: int = 1, expert: int = 1
) -> list[float]:
    """Returns the losses of STEPS updates of megatron-core's model, begun from `weights`. Collective."""
    from megatron.core import parallel_state
    from megatron.core.distributed import finalize_model_grads
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    with on_cpu():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=tensor,
            expert_model_parallel_size=expert,
            expert_tensor_parallel_size=1,
        )
        model_parallel_cuda_manual_seed(0)
        try:
            model = gpt(recipe, tensor, expert)
            load(model.module, weights, recipe.model.num_heads)
            optimizer = optimizer_of(recipe, model.parameters())
            rank, size = world.rank // tensor, world.size // tensor
            losses = []
            for step in range(STEPS):
                (batch,) = share_of(batch_of(recipe, step), rank, size)
                length = batch.tokens.shape[1]
                positions = torch.arange(length).expand_as(batch.tokens)
                is_hidden = torch.ones(1, 1, length, length).triu(1).bool()
                optimizer.zero_grad()  # or the next gradient is added to itself: `grad` is `main_grad` below
                model.zero_grad_buffer()
                loss = model(batch.tokens, positions, is_hidden, labels=batch.targets).mean()
                loss.backward()
                finalize_model_grads([model])
                for parameter in model.parameters():
                    parameter.grad = parameter.main_grad
                optimizer.step()
                losses.append(float(world.everyone.sum(loss.detach().double())) / world.size)
            return losses
        finally:
            parallel_state.destroy_model_parallel()


def gpt(recipe: Recipe, tensor: int, expert: int) -> Any:
    """Returns their model under their data parallelism, with their initial values."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
    from megatron.core.transformer.transformer_config import TransformerConfig

    spec = spec_of(recipe)
    moe, router = spec.moe[0], spec.moe[0].router
    is_gated = spec.activation == "swiglu"
    config = TransformerConfig(
        num_layers=spec.stacks[0].num_layers,
        hidden_size=spec.d_model,
        num_attention_heads=spec.num_heads,
        ffn_hidden_size=spec.d_ff,
        gated_linear_unit=is_gated,
        activation_func=nn.functional.silu if is_gated else nn.functional.relu,
        normalization="RMSNorm",
        layernorm_epsilon=torch.finfo(torch.float32).eps,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        num_moe_experts=moe.num_experts,
        moe_ffn_hidden_size=moe.d_ff,
        moe_shared_expert_intermediate_size=moe.shared_width or None,
        moe_router_topk=router.num_choices,
        moe_router_pre_softmax=router.num_choices == 1,  # otherwise its softmax is over the chosen experts
        moe_router_load_balancing_type="aux_loss",
        moe_aux_loss_coeff=router.balance_coefficient,
        moe_z_loss_coeff=router.z_coefficient,
        moe_router_dtype="fp32",
        moe_token_dispatcher_type="alltoall",
        tensor_model_parallel_size=tensor,
        expert_model_parallel_size=expert,
        expert_tensor_parallel_size=1,
        sequence_parallel=tensor > 1,
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        bias_dropout_fusion=False,
        bias_activation_fusion=False,
    )
    layer = get_gpt_layer_local_spec(num_experts=moe.num_experts, normalization="RMSNorm")
    # Theirs refuses sequence parallelism without TransformerEngine.
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = Norm
    model = GPTModel(
        config,
        TransformerBlockSubmodules(layer_specs=[layer] * config.num_layers, layer_norm=Norm),
        vocab_size=spec.vocabulary_size,
        max_sequence_length=spec.stacks[0].length,
        position_embedding_type="rope" if spec.positions == "rotary" else "learned_absolute",
        share_embeddings_and_output_weights=spec.tied_embeddings,
    )
    reduction = DistributedDataParallelConfig(grad_reduce_in_fp32=True, overlap_grad_reduce=False)
    return DistributedDataParallel(config, reduction, model)


class Norm(nn.RMSNorm):
    """Is torch's norm with megatron-core's mark of a parameter whose gradient is summed over the tensor group."""

    def __init__(self, config: Any, hidden_size: int, eps: float):
        super().__init__(hidden_size, eps)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


@torch.no_grad()
def load(model: nn.Module, weights: Mapping[str, Tensor], num_heads: int) -> None:
    """Copies into every parameter of this rank its part of our weights."""
    from megatron.core import parallel_state

    rank, expert_rank = (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_expert_model_parallel_rank(),
    )
    numbers = {int(found[1]) for name, _ in model.named_parameters() if (found := EXPERT.search(name))}
    for name, parameter in model.named_parameters():
        parts = _ours(name, weights)
        if (number := EXPERT.search(name)) is not None:
            expert = expert_rank * len(numbers) + int(number[1])
            parts = [part[expert].t() for part in parts]
        elif name.endswith("router.weight"):
            parts = [part.t() for part in parts]
        elif name.endswith("linear_qkv.weight"):
            # Head by head: its queries, keys and values.
            by_head = [part.unflatten(0, (num_heads, -1)) for part in parts]
            parts = [torch.stack(by_head, dim=1).flatten(0, 2)]
        degree = sum(part.numel() for part in parts) // parameter.numel()
        if degree > 1:
            parts = [part.chunk(degree, dim=parameter.partition_dim)[rank] for part in parts]  # type: ignore
        parameter.copy_(torch.cat(parts))


def _ours(name: str, weights: Mapping[str, Tensor]) -> list[Tensor]:
    """Returns our whole tensors that parameter `name` of theirs is made of."""
    in_block = BLOCK.fullmatch(name)
    prefix, rest = (in_block[1], in_block[2]) if in_block else ("", name)
    names = [prefix + ours for ours in NAMES[EXPERT.sub("", rest)]]
    return [weights[each] for each in names if each in weights]
