"""The lab: several hosts on one machine, each with its own name, address, files, processes and sshd."""
