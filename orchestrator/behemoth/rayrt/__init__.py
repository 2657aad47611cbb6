"""The only package that imports ray: agents on an embedded Ray, on a Ray cluster, or as plain processes."""
