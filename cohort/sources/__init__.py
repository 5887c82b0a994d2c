"""One file per source of radiographs; each turns its own layout into the cohort's columns, or says which row cannot."""
