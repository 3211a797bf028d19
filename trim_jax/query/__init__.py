"""Query-level routers: whole questions go to the small or the large model; baselines of TRIM."""
