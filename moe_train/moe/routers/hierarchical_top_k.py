"""Implements the hierarchical noisy top-k gate: over groups of experts, then within each chosen group.

Shazeer et al., 1701.06538, appendix B: every group i has a gate of its own over its experts j, and
y = sum_ij Gp(x)_i * G_i(x)_j * E_ij(x)                                            # eq. 12
importance of ij = sum_x Gp(x)_i * G_i(x)_j                                        # eq. 13
load of ij = Load_p(X)_i * Load_i(X_i)_j / |X_i|, X_i the tokens sent to group i   # eq. 14
with the losses CV^2 of both over all experts, in a batch (`balance_over`). Each gate is the noisy top-k one of
noisy_top_k.py, and begins at 0 like it. Equations 13 and 14 and their numbers are from memory. A gate is computed for
every token, also those of groups that were not chosen, which costs what the flat gate costs.
The balance loss, and the z-loss as a sum over all gates, are of logits without noise; the paper has neither.
T tokens, D model width, E experts, G groups of J = E / G neighbouring experts, K groups of a token, M experts of each,
L = K * M.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from moe_train.config.kinds.router.hierarchical_top_k import HierarchicalTopKRouterConfig
from moe_train.initial import Constant, Initial
from moe_train.moe.losses import TokenSets, balance_loss, cv_squared, watched, z_loss
from moe_train.moe.routers.edges import Loss, table_routing
from moe_train.moe.routers.gate import GateRouter
from moe_train.moe.routers.noise import normal
from moe_train.moe.routers.noisy_top_k import NOISE_FLOOR, chance_of_choice
from moe_train.moe.routers.scores import gate_logits, jittered, largest
from moe_train.moe.routing import RouteContext, Routing
from moe_train.results import SetLoss


class Gate(NamedTuple):
    """Holds the result of one noisy top-k gate of R rows over O options, of which it keeps K."""

    kept: Int[Tensor, "R K"]
    weights: Float[Tensor, "R K"]
    chances: Float[Tensor, "R O"]
    """To be among the kept, were an option's noise drawn again; without noise whether it is."""


class HierarchicalTopKRouter(GateRouter):
    """Routes a token to K groups, and M experts of each; losses `importance` and `load`."""

    config: HierarchicalTopKRouterConfig

    def __init__(
        self, config: HierarchicalTopKRouterConfig, *, d_model: int, num_experts: int, group: int, site: str
    ):
        super().__init__(config, d_model=d_model, num_experts=num_experts, group=group, site=site)
        self.noise_weight = nn.Parameter(torch.empty(d_model, num_experts))
        self.group_weight = nn.Parameter(torch.empty(d_model, config.num_groups))
        self.group_noise_weight = nn.Parameter(torch.empty(d_model, config.num_groups))

    def initial(self, name: str) -> Initial:
        """Starts all matrices at 0, as in noisy_top_k.py."""
        return Constant(0.0)

    def forward(self, x: Float[Tensor, "T D"], context: RouteContext) -> Routing:
        """Routes every token to K * M experts."""
        config, tokens, num_experts = self.config, x.shape[0], self.weight.shape[1]
        with torch.autocast(x.device.type, enabled=False):
            logits = self.logits(x, context)
            of_groups, clean = logits.tensor_split([config.num_groups], dim=1)
            x = jittered(x.float(), config.jitter, self.site, context)
            groups = _gate(
                of_groups,
                *_noisy(x, of_groups, self.group_noise_weight, f"{self.site}.groups", context),
                config.top_groups,
            )
            noisy, deviation = _noisy(x, clean, self.noise_weight, self.site, context)
            inside = _gate(
                self._by_group(clean),
                self._by_group(noisy),
                None if deviation is None else self._by_group(deviation),
                config.k,
            )
            inside = Gate(*(part.unflatten(0, (tokens, config.num_groups)) for part in inside))
            own = groups.kept.unsqueeze(2).expand(-1, -1, config.k)
            per_group = num_experts // config.num_groups
            expert_ids = (inside.kept.gather(1, own) + own * per_group).flatten(1)
            weights = (inside.weights.gather(1, own) * groups.weights.unsqueeze(2)).flatten(1)
            gates = torch.zeros(tokens, num_experts, device=x.device).scatter(1, expert_ids, weights)
            sets = TokenSets.of(config.balance_over, self.group, context.rows)
            losses: dict[str, Loss] = {
                "importance": sets.loss(sets.totals(gates), cv_squared),
                "load": self._load(groups, inside, sets),
                "balance": self._balance(logits, expert_ids, sets),
                "z": self._z(logits, context),
            }
        return table_routing(
            expert_ids,
            weights,
            num_experts,
            figures=self.figures(logits, context),
            losses=losses,
            coefficients={
                "importance": config.importance_coefficient,
                "load": config.load_coefficient,
                "balance": config.balance_coefficient,
                "z": config.z_coefficient,
            },
        )

    def logits(self, x: Float[Tensor, "T D"], context: RouteContext) -> Float[Tensor, "T N"]:
        """Returns the logits of groups, then of the experts of each."""
        x = jittered(x.float(), self.config.jitter, self.site, context)
        return torch.cat((gate_logits(x, self.group_weight), gate_logits(x, self.weight)), dim=1)

    def softmaxes(self, logits: Float[Tensor, "T N"]) -> Sequence[Float[Tensor, "T _"]]:
        """Returns one softmax over groups, and one within each of them."""
        of_groups, inside = logits.tensor_split([self.config.num_groups], dim=1)
        return (of_groups, *inside.chunk(self.config.num_groups, dim=1))

    def expert_logits(self, logits: Float[Tensor, "T N"]) -> Float[Tensor, "T E"]:
        """Returns the logarithms of an expert's probability in its group times that of the group."""
        of_groups, *inside = (torch.log_softmax(each, dim=1) for each in self.softmaxes(logits))
        return (of_groups.unsqueeze(2) + torch.stack(inside, dim=1)).flatten(1)

    def _by_group(self, values: Float[Tensor, "T E"]) -> Float[Tensor, "R J"]:
        """Returns a row for each token and group."""
        return values.unflatten(1, (self.config.num_groups, -1)).flatten(0, 1)

    def _load(self, groups: Gate, inside: Gate, sets: TokenSets) -> SetLoss:
        """Returns CV^2 of the smooth estimate of each expert's load   # eq. 14."""
        member = torch.zeros_like(groups.chances).scatter(1, groups.kept, 1.0)
        among = (inside.chances * member.unsqueeze(2)).flatten(1)
        totals = sets.totals(torch.cat((groups.chances, member, among), dim=1))
        return sets.loss(totals, partial(load_imbalance, num_groups=self.config.num_groups))

    def _balance(
        self, logits: Float[Tensor, "T N"], expert_ids: Int[Tensor, "T L"], sets: TokenSets
    ) -> SetLoss:
        """Returns the balance loss, an expert's probability being its group's times its own in it, without noise."""
        probabilities = self.expert_logits(watched(logits, self.config.balance_coefficient)).exp()
        return balance_loss(probabilities, expert_ids, sets)

    def _z(self, logits: Float[Tensor, "T N"], context: RouteContext) -> Float[Tensor, ""]:
        """Returns the z-losses of all gates, summed."""
        gates = self.softmaxes(watched(logits, self.config.z_coefficient))
        groups = TokenSets.of("group", self.group, context.rows)
        losses = [z_loss(gate, groups) for gate in gates]
        return torch.stack(losses).sum()


def load_imbalance(totals: Float[Tensor, "B N"], num_groups: int) -> Float[Tensor, ""]:
    """Returns CV^2 of the loads in B sets."""
    return cv_squared(estimated_load(totals, num_groups))


def estimated_load(totals: Float[Tensor, "B N"], num_groups: int) -> Float[Tensor, "B E"]:
    """Returns each expert's load, from sums of the chances of groups, their members, and experts' chances there."""
    chances, members, among = totals.tensor_split((num_groups, 2 * num_groups), dim=1)
    shares = among.unflatten(1, (num_groups, -1)) / members.clamp(min=1).unsqueeze(2)
    return (chances.unsqueeze(2) * shares).flatten(1)


def _noisy(
    x: Float[Tensor, "T D"],
    clean: Float[Tensor, "T O"],
    noise_weight: Float[Tensor, "D O"],
    site: str,
    context: RouteContext,
) -> tuple[Float[Tensor, "T O"], Float[Tensor, "T O"] | None]:
    """Returns the logits with noise, and its standard deviation; None outside of training   # eq. 4."""
    if not context.training:
        return clean, None
    deviation = F.softplus(gate_logits(x, noise_weight)) + NOISE_FLOOR
    return clean + deviation * normal(clean.shape[1], site, context), deviation


def _gate(
    clean: Float[Tensor, "R O"], noisy: Float[Tensor, "R O"], deviation: Float[Tensor, "R O"] | None, k: int
) -> Gate:
    """Returns the k largest of each row, a softmax over them   # eq. 3, 5."""
    options = clean.shape[1]
    values, chosen = largest(noisy.t().contiguous(), min(k + 1, options))
    kept = chosen[:, :k]
    if deviation is None or k == options:
        chances = torch.zeros_like(clean).scatter(1, kept, 1.0)
    else:
        chances = chance_of_choice(clean, noisy, deviation, values, k)
    return Gate(kept, torch.softmax(values[:, :k], dim=1), chances)
