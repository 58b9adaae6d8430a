"""The table of agents: who runs, who started whom, who was not heard of."""
