"""One module a method: its paper's claims, measured against its baselines."""
