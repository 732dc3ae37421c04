"""Which tasks belong together: affinities, the search for groups, and how sure it is."""
