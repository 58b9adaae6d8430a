"""Cache stores: ephemeral values and messages."""
