"""The coordinator: a web application that serves projects, watches their swarms and shows them."""
