"""Where recommendations come from."""

QLORA = "arXiv 2305.14314"
