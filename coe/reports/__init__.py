"""What the traffic says: uses, spend, drift, alarms (`coe report`)."""
