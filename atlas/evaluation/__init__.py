"""Evaluation: a model beside linear baselines on the same held-out studies."""
