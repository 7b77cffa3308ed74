"""What is known of an app, for whoever shows it: the commands and the page. Nothing is drawn here, and nothing changed."""
