"""The stocks of roots that the supervisor knows. Their mounts, which hold host mounts, go soon after their last use."""

import time
from errno import ENOKEY

from tasks.taskd.root import Stock

KEEP_SECONDS = 10.0
MAX_STOCKS = 32


class Stocks:
    """Stocks by the key that the server gave them."""

    def __init__(self) -> None:
        self._stocks: dict[str, tuple[Stock, float]] = {}

    def of(self, key: str, steps: object) -> Stock:
        """Return a stock; one that is new is made of `steps` (see `Stock`). ENOKEY without them.

        The one that was used least recently may go.
        """
        stock = self._stocks.pop(key, (None, 0.0))[0]
        if stock is None:
            if steps is None:
                raise OSError(ENOKEY, "a stock that was not described")
            stock = Stock(steps)
        self._stocks[key] = stock, time.monotonic()
        if len(self._stocks) > MAX_STOCKS:
            self._stocks.pop(next(iter(self._stocks)))[0].close()
        return stock

    def expire(self) -> bool:
        """Close those that were not used lately; returns whether any are left open."""
        oldest = time.monotonic() - KEEP_SECONDS
        for stock, used in self._stocks.values():
            if used <= oldest:
                stock.close()
        return any(used > oldest for _, used in self._stocks.values())
