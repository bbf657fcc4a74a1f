"""Residency: more experts than fit into the memory of the devices; a scheduler loads and unloads their servers."""
