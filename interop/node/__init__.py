"""The node on which a runtime is tried: its network and what is outside, what is left on it, and its plugins."""
