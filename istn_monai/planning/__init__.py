"""Settings for a data set from what it is: the plan that a training begins with.

Wall: planning imports neither workflow nor qa nor registration; what it decides goes to them as a file of settings.
"""
