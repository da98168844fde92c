"""Which cards there are, who may have them, and who is on them."""
