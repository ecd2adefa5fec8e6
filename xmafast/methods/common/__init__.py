"""What several methods are made of. The methods themselves have a file each, beside this folder."""
