"""How fast the potentials are: beside other ways, against the bound of the machine, and on several processes."""
