"""What podyd's manual is made of."""
