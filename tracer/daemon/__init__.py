"""The watch: what runs all year and says where packets die."""
