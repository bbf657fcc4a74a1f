"""Learning rounds of `coe retrain`: router, plan and gate, each behind a promotion test."""
