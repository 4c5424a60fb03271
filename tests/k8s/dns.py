"""`python -m k8s.dns`: the cluster's name server. It knows headless services, all that an MPIJob asks for."""

from __future__ import annotations

import sys
import threading
import time

from dnslib import QTYPE, RCODE, RR, A, DNSRecord
from dnslib.server import BaseResolver, DNSLogger, DNSServer
from kubernetes import config
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic import DynamicClient
from urllib3.exceptions import HTTPError

from k8s.access import Object
from k8s.layout import DOMAIN, GATEWAY, layout

TTL_S = 1
WATCH_TIMEOUT_S = 30
Key = tuple[str, str]


class Addresses:
    """The addresses behind every name, kept up to date from the API server's endpoints."""

    def __init__(self) -> None:
        self.table: dict[Key, dict[str, list[str]]] = {}

    def of(self, name: str) -> list[str] | None:
        """Returns the addresses of a name, None for a name that is not there."""
        return next((names[name] for names in list(self.table.values()) if name in names), None)

    def put(self, endpoints: Object) -> None:
        """Takes over what a service's endpoints are now."""
        service, namespace = endpoints["metadata"]["name"], endpoints["metadata"]["namespace"]
        base = f"{service}.{namespace}.svc.{DOMAIN}"
        names: dict[str, list[str]] = {}
        for subset in endpoints.get("subsets") or []:
            for address in subset.get("addresses") or []:
                names.setdefault(base, []).append(address["ip"])
                if address.get("hostname"):
                    names.setdefault(f"{address['hostname']}.{base}", []).append(address["ip"])
        self.table[namespace, service] = names

    def follow(self, api: DynamicClient) -> None:
        """Follows the endpoints of all namespaces; does not return."""
        resource = api.resources.get(api_version="v1", kind="Endpoints")
        while True:
            try:
                listed = resource.get().to_dict()
                self.table = {}
                for endpoints in listed["items"]:
                    self.put(endpoints)
                version = listed["metadata"]["resourceVersion"]
                for event in resource.watch(resource_version=version, timeout=WATCH_TIMEOUT_S):
                    endpoints = event["raw_object"]
                    if event["type"] == "DELETED":
                        meta = endpoints["metadata"]
                        self.table.pop((meta["namespace"], meta["name"]), None)
                    elif event["type"] in ("ADDED", "MODIFIED"):
                        self.put(endpoints)
            except (ApiException, HTTPError) as error:
                print(f"dns: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                time.sleep(1)


class Resolver(BaseResolver):  # type: ignore[misc]  # dnslib has no annotations
    """Answers from the table, for addresses of version 4."""

    def __init__(self, addresses: Addresses) -> None:
        self.addresses = addresses

    def resolve(self, request: DNSRecord, handler: object) -> DNSRecord:
        """Returns the answer to a request."""
        reply = request.reply()
        found = self.addresses.of(str(request.q.qname).rstrip(".").lower())
        if found is None:
            reply.header.rcode = RCODE.NXDOMAIN
        elif request.q.qtype in (QTYPE.A, QTYPE.ANY):
            for address in found:
                reply.add_answer(RR(request.q.qname, QTYPE.A, rdata=A(address), ttl=TTL_S))
        return reply


def main() -> int:
    """Serves until it is ended."""
    api = DynamicClient(config.new_client_from_config(str(layout().run / "name-server.kubeconfig")))
    addresses = Addresses()
    server = DNSServer(Resolver(addresses), address=GATEWAY, port=53, logger=DNSLogger("-request,-reply", prefix=False))
    threading.Thread(target=server.start, daemon=True).start()
    addresses.follow(api)
    return 1


if __name__ == "__main__":
    sys.exit(main())
