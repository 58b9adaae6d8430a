"""Permissions by owner and mode, denied by default."""
