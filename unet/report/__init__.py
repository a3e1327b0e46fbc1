"""Pages of HTML: the shell, plots, tables, figures of samples, and one module for each page."""
