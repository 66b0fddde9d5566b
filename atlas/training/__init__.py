"""Training on Lightning: the module, the data module, the callbacks, the run folder."""
