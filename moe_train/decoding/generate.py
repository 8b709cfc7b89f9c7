"""Translates with an encoder-decoder: encodes the source once, then decodes prefixes until all sentences end.

Whole prefixes are decoded at every step, since routers and their capacity are defined on whole sequences. With a limit
on capacity (`moe.eval_capacity_factor`) a prefix has fewer slots than the finished sentence, so an expert may drop
other tokens than in validation; in dropless layers there is no difference. Experts drawn for a sentence
(routers/thor.py) stay the same at every step and in every beam, because draws depend on the sentence's number.
B sentences, K beams, S tokens so far, R tokens of the source, N tokens at most.
"""

from collections.abc import Callable

from jaxtyping import Int
from torch import Tensor

from moe_train.config.schema import DecodingConfig
from moe_train.data.batch import Batch
from moe_train.data.tokenizer import EOS_ID, PAD_ID
from moe_train.decoding.beam_search import beam_search
from moe_train.model.logits import LogProbabilities, log_probabilities
from moe_train.model.model import Translating
from moe_train.moe.routing import Pass, RouteContext
from moe_train.moe.rows import Rows

EXTRA_TOKENS = 8
"""A translation may have 3/2 as many tokens as its (padded) source, plus this many."""


def generate(
    model: Translating,
    batch: Batch,
    forward_pass: Pass,
    config: DecodingConfig,
    longest: int,
    may_stop: Callable[[bool], bool] = bool,
) -> Int[Tensor, "B N"]:
    """Returns the best translation found for each source of `batch`, up to its first `<eos>`, which fills the rest.

    None has more than `longest` tokens. `forward_pass` is one of validation; `may_stop` as in
    `beam_search`, for ranks whose calls of the model must meet.
    """
    assert batch.source is not None
    source, is_real, beams = batch.source, batch.source_is_real, config.beam_size
    of_source = Rows(batch.sequence_ids, source, is_real)
    memory = model.encode(source, RouteContext(forward_pass, of_source)).states
    memory = memory.repeat_interleave(beams, dim=0)
    is_real = None if is_real is None else is_real.repeat_interleave(beams, dim=0)
    sequence_ids = batch.sequence_ids.repeat_interleave(beams)

    def step(prefixes: Int[Tensor, "B K S"]) -> LogProbabilities:
        tokens = prefixes.flatten(0, 1)
        context = RouteContext(forward_pass, Rows(sequence_ids, tokens))
        logits = model.decode(tokens, context, memory, is_real).logits
        log_p = log_probabilities(logits.at_end())
        return log_p._replace(values=log_p.values.unflatten(0, (-1, beams)))

    return beam_search(
        step,
        len(source),
        beam_size=beams,
        max_length=min(longest, source.shape[1] * 3 // 2 + EXTRA_TOKENS),
        alpha=config.length_penalty,
        start=PAD_ID,
        end=EOS_ID,
        device=source.device,
        may_stop=may_stop,
    ).tokens
