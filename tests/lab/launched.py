"""Scripts that launches on the lab run, and what they leave to be looked at."""

from __future__ import annotations

# What a rank says of itself. Its memory policy stands in the first line of numa_maps: `ADDRESS bind:0 ...`.
FACTS = """\
import json, os, pathlib, socket, sys
facts = {"env": dict(os.environ), "argv": sys.argv[1:], "host": socket.gethostname(),
         "cpus": sorted(os.sched_getaffinity(0)),
         "policy": pathlib.Path("/proc/self/numa_maps").read_text().split()[1]}
sys.stdout.write(json.dumps(facts) + "\\n")
sys.stderr.write(f"words of rank {os.environ['RANK']}\\n")
"""
# A rank that holds on to all it can: signals, a segment, children in other sessions.
STUBBORN = """\
import os, pathlib, signal, subprocess, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
pathlib.Path(f"/dev/shm/corebound.{os.environ['COREBOUND_JOB_ID']}.{os.environ['RANK']}").write_text("x")
subprocess.Popen(["sleep", "300"], start_new_session=True)
subprocess.Popen(["sh", "-c", "setsid sleep 301 & exit 0"])
print("up", flush=True)
time.sleep(300)
"""
# Looks at all processes of a node, as root: prints how many agents there are, how many processes know the token, how
# many secrets of launches environments hold, and every command line on which token or secret stands.
SECRETS_IN_SIGHT = """\
import json, os, pathlib
secrets, lines, agents, tokens = {b"hf_not_to_be_seen"}, [], 0, 0
for entry in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        line, environ = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes().split(b"\\0")
    except OSError:
        continue
    if entry.name == str(os.getpid()):
        continue
    lines.append(line)
    agents += b"corebound.launcher.agent" in line
    tokens += b"HF_TOKEN=hf_not_to_be_seen" in environ
    secrets |= {one.partition(b"=")[2] for one in environ if one.startswith(b"COREBOUND_AGENT_SECRET=")}
seen = [line.decode() for line in lines if any(secret in line for secret in secrets)]
print(json.dumps({"agents": agents, "tokens": tokens, "secrets": len(secrets) - 1, "lines": seen}))
"""
