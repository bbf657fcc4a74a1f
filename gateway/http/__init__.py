"""The HTTP/1.1 server of a worker process: accepts connections, parses requests with llhttp, and runs the ASGI
application."""
