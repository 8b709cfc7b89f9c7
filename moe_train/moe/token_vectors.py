"""Makes vectors of tokens from their neighbours in the training text, so that tokens used alike have similar ones.

Roller et al. (2106.04426) cluster the embeddings of a trained model, which no run has before its first step. These are
had from counting alone: positive pointwise mutual information with the token before and the token after, reduced to
its largest singular directions (Levy and Goldberg, 2014: what such embeddings learn is close to this).
V vocabulary, C contexts (each of the commonest tokens, before and after), N numbers of a vector.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

VECTOR_SIZE = 64


def token_vectors(neighbours: Int[Tensor, "V C"]) -> Float[Tensor, "V N"]:
    """Returns vectors of length 1 in float64, from the tokens' counts in each context; 0 for one without any.

    Takes twice the memory of `neighbours`. The directions are eigenvectors of a [C, C] matrix, so nothing is random.
    """
    information = neighbours.double()
    of_token = information.sum(1, keepdim=True).clamp(min=1)
    of_context = information.sum(0, keepdim=True).clamp(min=1)
    # max(0, ln(n_tc * n / (n_t * n_c))), in place: this is the large matrix
    information.mul_(float(information.sum())).div_(of_token).div_(of_context).log_().clamp_(min=0)
    _, directions = torch.linalg.eigh(information.t() @ information)
    return F.normalize(information @ directions[:, -VECTOR_SIZE:], dim=1)
