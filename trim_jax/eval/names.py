"""What policies are called in tables and figures, and what part they play in a comparison."""

from __future__ import annotations

from trim_jax.eval.selected import QUERY

LABELS = {"never": "Weak-only", "always": "Strong-only", "random": "Random", "thr": "TRIM-Thr",
          "oracle": "Oracle", "agg": "TRIM-Agg", "seq": "TRIM-Seq", "q": "TRIM-Q",
          "pomdp": "TRIM-POMDP", "pomdp_filtered": "TRIM-POMDP, filtered belief",
          "rsd": "RSD", "glimp": "GlimpRouter",
          "loglik": "Log-likelihood judge (in place of SpecReason)"}  # fmt: skip
_VARIANTS = {"tuned": "tuned on the models", "release": "the release's features",
             "priced": "one network for all prices", "separate": "one network a price",
             "no_last": "no last-step rule", "takeover": "large model takes over",
             "judged": "judged by the large model"}  # fmt: skip
_ROUTERS = {"random": "random", "best-single": "best single model", "knn": "k-NN",
            "mf": "matrix factorisation", "sw-ranking": "similarity-weighted ranking",
            "bert": "BERT-style classifier", "smoothie": "Smoothie",
            "automix-threshold": "AutoMix, threshold", "automix-pomdp": "AutoMix, POMDP",
            "automix-prm-threshold": "AutoMix-PRM, threshold",
            "automix-prm-pomdp": "AutoMix-PRM, POMDP"}  # fmt: skip
_PER_TOKEN = "-per-token"
_ROLES = {"never": "anchor", "always": "anchor", "random": "baseline", "oracle": "upper bound"}


def family_of(policy: str) -> tuple[str, str]:
    """Name and variant: ("agg", "tuned") of "agg-tuned", ("pomdp", "filtered") of
    "pomdp_filtered", ("thr", "") of "thr". A query-level router is a family of its own."""
    if policy.startswith(QUERY):
        return policy, ""
    if policy.startswith("pomdp_filtered"):
        return "pomdp", policy[len("pomdp_"):]
    name, _, variant = policy.partition("-")
    return name, variant


def label_of(policy: str) -> str:
    """Display name; a policy from outside this package keeps its own name."""
    if policy.startswith(QUERY):
        router = policy[len(QUERY):].removesuffix(_PER_TOKEN)
        if router not in _ROUTERS:
            return policy
        priced = ", gain per token" if policy.endswith(_PER_TOKEN) else ""
        return f"Query-level: {_ROUTERS[router]}{priced}"
    name, _, variant = policy.partition("-")
    if name not in LABELS:
        return policy
    words = f", {_VARIANTS.get(variant, variant.replace('_', ' '))}" if variant else ""
    return LABELS[name] + words


def role_of(policy: str) -> str:
    """anchor, baseline, policy (step-level, without true labels) or upper bound."""
    if policy.startswith(QUERY):
        return "baseline"
    return _ROLES.get(family_of(policy)[0], "policy")


def is_router(policy: str) -> bool:
    """Whether it decides on whole problems (query-level)."""
    return policy.startswith(QUERY)
