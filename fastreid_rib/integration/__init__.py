"""FastReID's side, in folders named as FastReID's: what its registries and hooks find of us."""
