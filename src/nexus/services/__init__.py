"""Services: user space that needs nothing extra installed, one folder each.

A service knows :mod:`nexus.contracts` and :mod:`nexus.lib`. It is handed a filesystem and hooks,
and imports neither the kernel, nor a driver, nor another service.
"""
