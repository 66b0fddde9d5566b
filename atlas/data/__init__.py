"""From source files to batches; see each module for its stage."""
