"""What the server is compared with: one script a peer, each speaking the protocol of child.py."""
