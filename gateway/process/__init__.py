"""The gateway's processes: workers, signals, drain, reload, jobs in processes of their own, and operating-system
limits."""
