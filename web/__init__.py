"""The viewer: one page over `atlas.inference.Atlas`, on this machine. Installed as atlas.web."""
