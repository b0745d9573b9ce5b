"""The lab: experiments, and what runs, stores, judges and shows them."""
