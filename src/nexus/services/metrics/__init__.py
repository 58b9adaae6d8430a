"""What the kernel is doing: calls, latencies, locks, watches, queues and events."""
