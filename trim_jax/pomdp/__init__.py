"""TRIM-POMDP: parameters from traces, and the solver (method, section 2).

`backup` and `solve` need jax alone, and policies use them; `estimate` reads traces, and only
commands and training use it.
"""
