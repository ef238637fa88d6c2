"""What LatentWire's runs and sweeps show; no torch."""
