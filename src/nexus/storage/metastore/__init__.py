"""Ordered key-value stores behind :class:`nexus.contracts.metastore.MetastoreABC`."""
