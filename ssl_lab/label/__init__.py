"""`ssl-lab label`: a page on this machine on which people label images with a keyboard."""
