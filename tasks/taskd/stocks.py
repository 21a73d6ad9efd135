"""The stocks of roots that the supervisor keeps: each for a moment longer than it is used, for it holds host mounts."""

import time

from tasks.taskd.root import Stock

KEEP_SECONDS = 10.0
MAX_STOCKS = 32


class Stocks:
    """Stocks by the steps that they are made of."""

    def __init__(self) -> None:
        self._stocks: dict[str, tuple[Stock, float]] = {}

    def of(self, steps: str) -> Stock:
        """Return the stock of these steps (see `Stock`), made at need; the one that was used least recently may go."""
        stock = self._stocks.pop(steps, (None, 0.0))[0] or Stock(steps)
        self._stocks[steps] = stock, time.monotonic()
        if len(self._stocks) > MAX_STOCKS:
            self._drop(next(iter(self._stocks)))
        return stock

    def expire(self) -> bool:
        """Drop those that were not used lately; returns whether any are left."""
        oldest = time.monotonic() - KEEP_SECONDS
        for steps in [steps for steps, (_, used) in self._stocks.items() if used <= oldest]:
            self._drop(steps)
        return bool(self._stocks)

    def _drop(self, steps: str) -> None:
        self._stocks.pop(steps)[0].close()
