"""Learning rounds of `coe retrain`: plan and router, each behind a promotion test."""
