"""A calibrated simulator of routed solutions: policies are developed on it in seconds."""
