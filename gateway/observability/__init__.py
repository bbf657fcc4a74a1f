"""Reports of the gateway about itself: metrics, traces, logs, routing records and implicit feedback."""
