"""Learning rounds of `coe retrain`: router, plan, gate and tenant overlays, each behind a promotion test."""
