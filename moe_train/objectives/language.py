"""Next-token prediction. B sequences, S tokens, V vocabulary."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from moe_train.config.kinds.objective import LanguageConfig
from moe_train.data.batch import Batch


class LanguageObjective:
    """Cross-entropy in nats, a mean over tokens."""

    def __init__(self, config: LanguageConfig):
        del config  # no options yet

    def __call__(self, logits: Float[Tensor, "B S V"], batch: Batch) -> Float[Tensor, ""]:
        """The task loss of one microbatch, in fp32."""
        return F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten())
