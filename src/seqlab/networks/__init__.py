"""More networks to compare with, a file each, written as one would write one's own. Read the one
that you use, or that you want to begin your own from."""
