"""Tools around `mto_core`: patch series for the official recipes, comparison, command line."""
