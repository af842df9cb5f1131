"""Sources of candidates, exclusions and sampling: small functions over arrays, no files and no models of their own."""
