"""Questions over contexts: their sources, and the LightningDataModule that serves them."""
