"""`carb bench`: what every stage costs beside the official formulation written out plainly, and how it grows."""
