"""Synthesizers side by side: the same teacher, the same cost, the same measurement in the runtime.

`grid` says what is compared, `trials` does one entry of it, `imagestats` looks at the images, `table` and `page` show
what came out.
"""
