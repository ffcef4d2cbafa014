"""Studies: does dropout help on these data, at which rate, and against which alternative?"""
