"""Active state: what is declared and promoted, shared by the CLI's jobs and the gateway."""
