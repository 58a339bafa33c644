"""A RunConfig as a stand-alone script on plain transformers, peft and trl."""
