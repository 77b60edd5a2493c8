"""What the options lead to: the steps of a run, and what is left out."""

import argparse
from collections.abc import Iterable, Iterator
from itertools import product
from typing import NamedTuple

from .options import NOBODY
from .processes import COMMANDS, server_missing
from .profile import missing as profile_missing
from .publish import Publisher
from .scenarios import Load, affordable
from .sites import SITES, missing
from .suite import SCENARIOS

SITES_AT_ONCE = 4


class Step(NamedTuple):
    """Be a scenario on a server with so many clients of each site: one row of the report."""

    scenario: str
    server: str
    connections: int
    options: argparse.Namespace

    @property
    def kind(self) -> type[Load] | type[Publisher]:
        return SCENARIOS[self.scenario]

    @property
    def layer(self) -> str:
        return "redis" if self.kind.on_redis else self.options.layer or "memory"

    @property
    def sites(self) -> list[str]:
        """
        Return what is measured, of what can be.

        Where no server is chosen, variants of realtime, and servers by themselves, are beside uvicorn alone.
        """
        everybody = self.options.server or self.server in ("uvicorn", "none")
        sites = [name for name in self.kind.sites if everybody or runs_on_each_server(name)]
        return [name for name in chosen(sites, self.options) if missing(name) is None]

    @property
    def batches(self) -> Iterator[list[str]]:
        """
        Yield realtime with some of its peers, and again with others.

        Clients that wait for their turn cost something too, as servers ping them, and there may be too few descriptors.
        """
        own, *peers = self.sites
        room = affordable(self.connections * len(self.sites)) // max(1, self.connections)
        size = max(1, min(room, SITES_AT_ONCE) - 1)
        for start in range(0, max(1, len(peers)), size):
            yield [own, *peers[start : start + size]]

    @property
    def seconds(self) -> float:
        return self.options.seconds or self.kind.seconds

    @property
    def rounds(self) -> int:
        return self.options.rounds or self.kind.rounds

    @property
    def profiled(self) -> bool:
        """Whether to look where the time goes: not where a child of the server's process spends it."""
        in_one_process = self.server in ("daphne", "uvicorn")
        return self.options.profile and self.kind.profiled and in_one_process and profile_missing() is None

    @property
    def command(self) -> str:
        """Return what measures this step alone."""
        words = ["python -m benchmarks", self.scenario]
        if self.connections:
            words += ["--server", self.server, "--layer", self.layer, "--connections", str(self.connections)]
        words += ["--seconds", f"{self.seconds:g}", "--rounds", str(self.rounds)]
        peers = [peer for peer in self.options.peer or () if peer in (*self.kind.sites, NOBODY)]
        return " ".join([*words, *(f"--peer {peer}" for peer in peers)])


def left_out(options: argparse.Namespace) -> list[str]:
    """Return why servers and sites are left out that the options ask for."""
    kinds = [SCENARIOS[name] for name in scenarios(options)]
    servers = {name: None for kind in kinds for name in servers_of(kind.servers, options) if name in COMMANDS}
    names = {name: None for kind in kinds for name in chosen(kind.sites, options)}
    profile = profile_missing() if options.profile else None
    return [reason for reason in (*map(server_missing, servers), *map(missing, names), profile) if reason]


def scenarios(options: argparse.Namespace) -> list[str]:
    """Return which scenarios that have peers the options choose."""
    return [*SCENARIOS] if options.scenario == "all" else [name for name in SCENARIOS if name == options.scenario]


def servers_of(by_default: Iterable[str], options: argparse.Namespace) -> list[str]:
    """Return the servers that the options choose; where there is none to choose, that is none."""
    by_default = [*by_default]
    return options.server if options.server and by_default != ["none"] else by_default


def runs_on_each_server(name: str) -> bool:
    """Return whether a site is realtime itself, or a peer that runs on the same server."""
    return name == "realtime" or not (SITES[name].own or SITES[name].command)


def chosen(sites: Iterable[str], options: argparse.Namespace) -> list[str]:
    """Return realtime, and which of its peers the options choose."""
    own, *peers = sites
    return [own, *(peer for peer in peers if not options.peer or peer in options.peer)]


def steps(options: argparse.Namespace) -> Iterator[Step]:
    """Yield what is to be measured. A scenario without any of the chosen peers is left out."""
    for name in scenarios(options):
        kind = SCENARIOS[name]
        if options.peer and options.peer != [NOBODY] and len(chosen(kind.sites, options)) == 1:
            continue
        sizes = [options.connections] if options.connections and kind.sizes != (0,) else kind.sizes
        for server, size in product(servers_of(kind.servers, options), sizes):
            if server == "none" or server_missing(server) is None:
                yield Step(name, server, affordable(size), options)
