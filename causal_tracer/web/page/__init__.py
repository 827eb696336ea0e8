"""The page: its layout, its event handlers, and the HTML of its parts."""
