"""Transports (where bytes lie) and addressings (how they are found), composed."""
