"""Implements the layer of SMEAR: every segment of a sequence has its own expert, merged from the weights of all.

Rows stay where they are and weights travel. Where experts are sharded over workers, each worker makes its part of every
segment's merge for all workers of the group, and the parts are added where the segment is: so no worker ever holds
all experts, and what travels is a merged expert per segment and worker, whatever the number of experts. Of experts
that are cut in slices, each worker makes its slice, and the slices are joined there.
Workers of a tensor group have the same segments, and each takes a share of them (parallel/share.py).
T tokens, B sequences, G segments of them, N of this rank's share, M of the whole group, S tokens of a segment,
D model width, F hidden width, E experts, W workers of the group.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from moe_kernels.all_to_all import AllToAll, all_to_all
from moe_train.moe.activations import GATES
from moe_train.moe.dispatch.dispatcher import Dispatcher
from moe_train.moe.dispatch.through import Beside
from moe_train.moe.experts import HIDDEN_DIM
from moe_train.moe.figures import stats_of
from moe_train.moe.layers.layer import MoELayer, compute_dtype
from moe_train.moe.layers.whole_sequences import gather_sequences, split_sequences
from moe_train.moe.merging import MergingExperts
from moe_train.moe.routers.edges import table_routing
from moe_train.moe.routers.smear import SmearRouter
from moe_train.moe.routing import RouteContext
from moe_train.parallel.axis import Axis
from moe_train.parallel.mesh import Mesh
from moe_train.parallel.share import gather, split
from moe_train.results import MoEStats


class SmearLayer(MoELayer):
    """Merges experts, then applies one feed-forward block to each segment."""

    router: SmearRouter
    group: dist.ProcessGroup | None = None
    tensor = Axis()
    num_slices = 1

    def make_experts(self) -> MergingExperts:
        """Makes experts that are merged instead of applied to rows."""
        spec = self.spec
        return MergingExperts(spec.num_experts, spec.d_model, spec.d_ff, spec.activation)

    def connect(self, mesh: Mesh, dispatcher: Callable[[], Dispatcher]) -> None:
        """Says which part of the experts this worker holds; no rows are dispatched."""
        self.group, self.tensor, self.num_slices = mesh.exchange.group, mesh.tensor, mesh.expert_tensor.size

    def route(self, x: Float[Tensor, "T D"], context: RouteContext) -> tuple[Float[Tensor, "G E"], MoEStats]:
        """Returns the parts of each segment's expert; `load` counts a token for the expert with the largest part."""
        parts, figures = self.router(x, context)
        largest = self.router.of_tokens(parts.argmax(1), context.rows)
        if (real := context.rows.real) is not None:
            largest = largest[real]
        one = torch.ones(len(largest), 1, device=x.device)
        routing = table_routing(largest.unsqueeze(1), one, self.spec.num_experts, figures=figures)
        return parts, stats_of(routing, routing, context)

    def through_experts(
        self,
        x: Float[Tensor, "T D"],
        decision: Float[Tensor, "G E"],
        context: RouteContext,
        beside: Beside | None = None,
    ) -> Float[Tensor, "T D"]:
        """Applies each segment's merged expert."""
        assert beside is None, "config.check refuses to overlap weights"
        merged = [weight.to(compute_dtype(x)) for weight in self._merged(split(decision, self.tensor))]
        rows = context.rows.of_whole_sequences
        sequences, length = rows.values.shape
        segments = self.router.num_segments(length)
        size = self.router.config.segment or length
        padded = F.pad(rows.lay_out(gather_sequences(x, context.rows)), (0, 0, 0, segments * size - length))
        cut = padded.reshape(sequences * segments, size, x.shape[1])
        mine = _feed_forward(self.experts.activation, split(cut, self.tensor), merged)
        by_place = gather(mine, self.tensor, len(cut)).view_as(padded)[:, :length]
        return split_sequences(rows.take(by_place).to(x.dtype), context.rows)

    def _merged(self, parts: Float[Tensor, "N E"]) -> list[Float[Tensor, "N _ _"]]:
        """Returns the weights of each segment's expert. Collective over the group.

        Ranks may have different numbers of segments in validation, so they tell them first.
        """
        here, group = len(parts), self.group
        workers = 1 if group is None else dist.get_world_size(group)
        one_each = [1] * workers
        of_ranks = all_to_all(parts.new_full((workers,), here), one_each, one_each, group).int().tolist()
        mine = [here] * workers
        slices = self.num_slices
        of_holders = parts.unflatten(1, (workers // slices, -1)).transpose(0, 1)
        for_workers = of_holders.unsqueeze(1).expand(-1, slices, -1, -1).flatten(0, 2)
        weights = self.experts(AllToAll.apply(for_workers, mine, of_ranks, group))
        merged = []
        for name, weight in zip(self.experts.names, weights, strict=True):
            arrived = AllToAll.apply(weight.flatten(1), of_ranks, mine, group)
            sums = arrived.view(workers // slices, slices, here, *weight.shape[1:]).sum(0)
            merged.append(torch.cat(sums.unbind(0), HIDDEN_DIM[name]) if slices > 1 else sums[0])
        return merged


def _feed_forward(
    activation: str, rows: Float[Tensor, "G S D"], weights: list[Float[Tensor, "G _ _"]]
) -> Float[Tensor, "G S D"]:
    """Applies each segment's own block."""
    w_in, *w_gate, w_out = weights
    hidden = torch.bmm(rows.to(w_in.dtype), w_in)
    if w_gate:
        active = GATES[activation](torch.bmm(rows.to(w_in.dtype), w_gate[0])) * hidden
    else:
        active = F.relu(hidden) if activation == "relu" else F.gelu(hidden)
    return torch.bmm(active, w_out)
