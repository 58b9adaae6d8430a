"""The kernel: syscalls over router, locks and volumes. It knows no driver by name."""
