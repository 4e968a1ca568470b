"""Studies: named algorithms measured and compared. The only place that may know them all."""
