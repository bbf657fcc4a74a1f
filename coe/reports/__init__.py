"""Reports on the traffic: uses, spend, drift, alarms (`coe report`)."""
