"""A procedural chest whose truth is known: as Shepp-Logan is to tomography, small, sourced and exact."""
