"""The verbs `coe plan` and `coe solve`."""
