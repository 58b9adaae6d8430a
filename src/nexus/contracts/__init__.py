"""What every layer may name: types, errors, events, driver ABCs and the syscall protocol.

Declarations only. Nothing here does I/O, and nothing here imports another layer.
"""
