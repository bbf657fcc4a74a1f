"""Makes a plan from measured scores and the log (`coe plan`, `coe tune`, `coe retrain`)."""
