"""What one asks of a trained model while looking at it: studies, effects, uncertainty, peaks.

The viewer's server is a thin face of these functions; a notebook calls the same ones.
"""
