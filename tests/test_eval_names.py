"""Names that a reader understands, and parts that policies play."""

from __future__ import annotations

from trim_jax.eval.names import family_of, label_of, role_of
from trim_jax.eval.style import style_of


def test_variants_and_routers_have_labels():
    assert label_of("agg-tuned") == "TRIM-Agg, tuned on the models"
    assert label_of("pomdp_filtered-no_last") == (
        "TRIM-POMDP, filtered belief, no last-step rule")
    assert label_of("thr-some_thing") == "TRIM-Thr, some thing"
    assert label_of("query-automix-prm-pomdp-per-token") == (
        "Query-level: AutoMix-PRM, POMDP, gain per token")
    assert label_of("query-mine") == "query-mine" and label_of("my-rule") == "my-rule"


def test_a_variant_plays_the_part_of_its_family():
    assert role_of("q-tuned") == role_of("pomdp_filtered") == role_of("mine") == "policy"
    assert role_of("query-knn") == role_of("random") == "baseline"
    assert role_of("oracle") == "upper bound" and role_of("never") == "anchor"
    assert family_of("pomdp_filtered") == ("pomdp", "filtered")


def test_variants_share_a_colour_and_differ_by_dash():
    routed = ["agg", "agg-tuned", "agg-release", "q", "pomdp", "pomdp_filtered"]
    agg = [style_of(n, routed) for n in routed[:3]]
    assert len({s.color for s in agg}) == 1 and len({s.dash for s in agg}) == 3
    assert style_of("pomdp", routed).color == style_of("pomdp_filtered", routed).color
    # The same in another figure with other policies.
    assert style_of("q", ["q", "thr"]) == style_of("q", routed)
