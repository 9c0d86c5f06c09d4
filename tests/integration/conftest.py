"""The scripts here bring environments of their own; see each one's docstring. pytest does not collect them."""

collect_ignore_glob = ["*.py"]
