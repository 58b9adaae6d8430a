"""A chained record of every change, stored in the commit of the change."""
