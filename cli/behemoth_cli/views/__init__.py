"""Pure functions from the library's models to rows, pages and documents. Nothing here reads, prints or waits."""
