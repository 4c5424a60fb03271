"""The smoke run: real ranks on every node of an inventory, judged by what they report."""
