"""Routing policies: who writes the next step."""
