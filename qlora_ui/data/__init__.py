"""From a file or the Hub to checked rows of messages."""
