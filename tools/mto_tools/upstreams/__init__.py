"""One place per recipe: reads `patches/NAME/*.toml`."""
