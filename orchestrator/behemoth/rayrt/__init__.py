"""The only door to ray: agents on an embedded or joined Ray."""
