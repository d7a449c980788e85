"""The model that comes with the package, and pictures of the kind it was trained on."""
