"""The gateway's processes: workers, signals, drain, reload, jobs in separate processes, and operating-system
limits."""
