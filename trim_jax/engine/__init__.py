"""Routed inference: three models, one jitted step loop."""
