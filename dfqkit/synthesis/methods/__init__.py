"""One folder a method.

A folder's first file tells the method's source, formula and deviations and holds its section of a recipe, without
torch; `method` holds the algorithm. Adding one is its folder and one line of `dfqkit.config.methods`.
"""
