"""The memory model: layer programs, framework profiles, the events of a step, the peak."""
