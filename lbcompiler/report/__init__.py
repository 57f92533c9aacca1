"""What `lbc analyze` says of a model: its figures (analysis.py), and the page that shows them."""
