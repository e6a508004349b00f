"""What a run says about itself: figures, pictures, pages, lines on the screen. Imports `errors` and `text`."""
