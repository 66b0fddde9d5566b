"""Training on a machine that is not this one: providers, jobs, and the ledger of what they cost."""
