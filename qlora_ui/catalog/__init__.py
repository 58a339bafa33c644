"""What exists, as data: the place to look first when adding something."""
