"""What runs of MiniGPT and Lookahead show of themselves, by the contract of `reporting.contract`."""
