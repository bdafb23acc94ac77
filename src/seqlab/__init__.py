"""A training template for sequence models. Importing the package itself imports nothing heavy."""
