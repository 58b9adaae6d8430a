"""Protocols of what services and the kernel ask for by shape. Layer: contracts."""
