"""Finds exchanges by number, since a custom operator gets its exchange as an integer.

An operator's schema allows only tensors and numbers, and a compiled graph keeps numbers, so this table must be at
module level. It keeps nothing alive.
"""

import itertools
import weakref

from moe_kernels.endpoint import Endpoint
from moe_kernels.errors import KernelError

_numbers = itertools.count(1)
_exchanges: weakref.WeakValueDictionary[int, Endpoint] = weakref.WeakValueDictionary()


def register(exchange: Endpoint) -> int:
    """Returns the number of a new exchange."""
    number = next(_numbers)
    _exchanges[number] = exchange
    return number


def exchange_of(number: int) -> Endpoint:
    """Returns the exchange with this number. Raises KernelError if it no longer exists."""
    exchange = _exchanges.get(number)
    if exchange is None:
        raise KernelError(
            f"exchange {number} no longer exists; keep the Exchange as long as its operators run"
        )
    return exchange
