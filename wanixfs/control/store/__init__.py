"""Where a control plane keeps what it knows: one interface, several stores, one suite of tests that each must pass."""

from wanixfs.control.store.base import Store, Transaction
from wanixfs.control.store.memory import MemoryStore
from wanixfs.control.store.sqlite import SQLiteStore

__all__ = ["MemoryStore", "SQLiteStore", "Store", "Transaction"]
