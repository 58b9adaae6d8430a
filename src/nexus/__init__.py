"""NexusFS: a virtual filesystem kernel. The way in is :func:`nexus.sdk.connect`."""

__version__ = "0.1.0"
