"""Features of LatentWire: off unless `method/features` lists them."""
