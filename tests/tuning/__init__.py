"""The measurements of `coe tune`."""
