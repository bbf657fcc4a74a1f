"""More experts than fit in memory: who is awake is decided purely (`policy`), booked (`ledger`), carried out apart."""
