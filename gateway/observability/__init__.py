"""What the gateway reports about itself: metrics, traces, logs, routing records and implicit feedback."""
