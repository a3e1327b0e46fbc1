"""Pages of HTML: the shell, plots, tables, comparisons, and one module for each page."""
