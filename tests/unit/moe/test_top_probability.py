"""The largest probability of each router's distribution, summed over tokens: by hand, for every kind that has one."""

import pytest
import torch
from tiny_model import context, gate, with_padding

from moe_train.config.kinds.router.base import BaseRouterConfig
from moe_train.config.kinds.router.batch_priority import BatchPriorityRouterConfig
from moe_train.config.kinds.router.deepseek import DeepSeekRouterConfig
from moe_train.config.kinds.router.dense_to_sparse import DenseToSparseRouterConfig
from moe_train.config.kinds.router.expert_choice import ExpertChoiceRouterConfig
from moe_train.config.kinds.router.gshard import GShardRouterConfig
from moe_train.config.kinds.router.hierarchical_top_k import HierarchicalTopKRouterConfig
from moe_train.config.kinds.router.noisy_top_k import NoisyTopKRouterConfig
from moe_train.config.kinds.router.prototypes import PrototypesRouterConfig
from moe_train.config.kinds.router.reinforce import ReinforceRouterConfig
from moe_train.config.kinds.router.sinkhorn import SinkhornRouterConfig
from moe_train.config.kinds.router.soft import SoftRouterConfig
from moe_train.config.kinds.router.switch import SwitchRouterConfig
from moe_train.config.kinds.router.top_k import TopKRouterConfig
from moe_train.config.registry import build

PROBABILITIES = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.1, 0.2, 0.3, 0.4]])


@pytest.mark.parametrize(
    "config",
    [
        SwitchRouterConfig(),
        TopKRouterConfig(),  # before the two weights are divided by their sum
        GShardRouterConfig(),
        BatchPriorityRouterConfig(),
        ExpertChoiceRouterConfig(),
        DenseToSparseRouterConfig(),
        ReinforceRouterConfig(),
        DeepSeekRouterConfig(scores="softmax"),
        NoisyTopKRouterConfig(),  # of all experts, not of the two that are kept
        PrototypesRouterConfig(),  # of all experts, not of those of each prototype
        BaseRouterConfig(),
        SinkhornRouterConfig(),
    ],
    ids=lambda config: config.kind,
)
def test_the_largest_probability_of_each_router_by_hand(config):
    made = gate(config, PROBABILITIES.log())
    routing = made(torch.eye(2), context(1, 2))
    assert float(routing.figures.top_probability) == pytest.approx(0.5 + 0.4, rel=1e-6)
    first_alone = with_padding(context(1, 2), torch.tensor([[True, False]]))
    of_first = made(torch.eye(2), first_alone).figures.top_probability
    assert float(of_first) == pytest.approx(
        float(made(torch.eye(2)[:1], context(1, 1)).figures.top_probability), rel=1e-6
    )


def test_of_sigmoid_scores_it_is_the_largest_share():
    """Scores .8, .2, .5 and .5: .8 of 2."""
    logits = torch.logit(torch.tensor([[0.8, 0.2, 0.5, 0.5]]))
    routing = gate(DeepSeekRouterConfig(), logits)(torch.eye(1), context(1, 1))
    assert float(routing.figures.top_probability) == pytest.approx(0.4)


def test_two_levels_multiply():
    """One group has .9 of every token, and inside it one expert has .8: no other expert has more than .72."""
    made = gate(HierarchicalTopKRouterConfig(num_groups=2), torch.tensor([[0.8, 0.2, 0.5, 0.5]]).log())
    made.group_weight.data.copy_(torch.tensor([[0.9, 0.1]]).log())
    assert float(made(torch.ones(3, 1), context(1, 3)).figures.top_probability) == pytest.approx(3 * 0.72)


def test_an_expert_of_soft_has_what_its_slots_have():
    """Slots of .1, .3, .4 and .2: the second of two experts has .6."""
    config = SoftRouterConfig(slots_per_expert=2)
    made = build("moe.router", config, d_model=4, num_experts=2, group=1, site="")
    made.weight.data.copy_(torch.eye(4))
    made.scale.data.fill_(1.0)
    x = torch.tensor([[0.1, 0.3, 0.4, 0.2]]).log()
    made.scale.data.fill_(float(x.norm()))  # logits are scale * cos(x, slot), up to the epsilon in the norms
    figures = made(x, context(1, 1)).figures
    assert float(figures.top_probability) == pytest.approx(0.6, rel=1e-5)
