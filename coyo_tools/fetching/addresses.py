"""Which addresses may be asked at all, and connections that go to a checked address only.

A name is resolved once; the connection is made to an address that was looked at, so that a second
answer of the name server can't lead elsewhere (DNS rebinding). The list of special addresses is our
own, because Python's ``ipaddress.is_global`` differs between 3.11 and 3.13 and takes addresses that
carry another one inside for public.
"""

import ipaddress
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from coyo_tools.fetching import outcomes
from coyo_tools.fetching.clock import Clock
from coyo_tools.fetching.outcomes import refuse
from coyo_tools.fetching.policy import EVERY_NETWORK

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_TRIED_ADDRESSES = 4
_KEPT_NAMES = 20_000
_KEPT_SECONDS = 60.0

# https://www.iana.org/assignments/iana-ipv4-special-registry, and multicast.
_SPECIAL_4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",  # shared by providers
            "127.0.0.0/8",
            "169.254.0.0/16",  # link-local; clouds keep credentials there
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
        ),
    )
)
# https://www.iana.org/assignments/iana-ipv6-special-registry: only 2000::/3 is given out to the
# world, and of that these are not.
_GLOBAL_6 = ipaddress.IPv6Network("2000::/3")
_SPECIAL_6 = tuple(map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "3fff::/20")))
_TEREDO = ipaddress.IPv6Network("2001::/32")
_SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_LOCAL_NAMES = frozenset(
    {"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback", "broadcasthost"}
)


def is_public(address: str | IPAddress) -> bool:
    """Whether an address is one of the public internet, and so is every address inside it.

    >>> is_public("93.184.215.14"), is_public("10.0.0.1"), is_public("::ffff:10.0.0.1")
    (True, False, False)
    """
    address = ipaddress.ip_address(address)
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _SPECIAL_4)
    embedded = embedded_addresses(address)
    if embedded:
        return all(is_public(inner) for inner in embedded)
    return address in _GLOBAL_6 and not any(address in network for network in _SPECIAL_6)


def embedded_addresses(address: ipaddress.IPv6Address) -> tuple[ipaddress.IPv4Address, ...]:
    """The IPv4 addresses that an IPv6 address leads to by mapping or through a gateway."""
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    number = int(address)
    if address in _NAT64:
        return (ipaddress.IPv4Address(number & 0xFFFF_FFFF),)
    if address in _SIX_TO_FOUR:
        return (ipaddress.IPv4Address(number >> 80 & 0xFFFF_FFFF),)
    if address in _TEREDO:
        server = ipaddress.IPv4Address(number >> 64 & 0xFFFF_FFFF)
        client = ipaddress.IPv4Address(~number & 0xFFFF_FFFF)
        return server, client
    return ()


def parse_network(text: str) -> IPNetwork:
    """A network as ``--allow-network`` takes it: ``10.1.0.0/16``, or one address.

    Raises:
        ValueError: it is none.
    """
    return ipaddress.ip_network(text.strip(), strict=False)


class AddressGuard:
    """Knows which addresses are allowed, and opens connections to these alone.

    Names that were resolved are remembered for a minute, at most 20,000 of them.
    """

    def __init__(self, allowed_networks: Iterable[str]) -> None:
        """Allow public addresses and those in ``allowed_networks``.

        Raises:
            ValueError: one of them is no network.
        """
        self._allowed = tuple(map(parse_network, allowed_networks))
        self._allows_all = {str(network) for network in self._allowed}.issuperset(EVERY_NETWORK)
        self._resolved: OrderedDict[str, tuple[float, Sequence[str] | socket.gaierror]]
        self._resolved = OrderedDict()
        self._lock = threading.Lock()

    def allows(self, address: str) -> bool:
        """Whether a connection to this address may be made."""
        if self._allows_all:
            return True
        # A zone index ("fe80::1%eth0") comes only with addresses of the local network.
        parsed = ipaddress.ip_address(address.partition("%")[0])
        if any(parsed in network for network in self._allowed):
            return True
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
            return self.allows(str(parsed.ipv4_mapped))
        return is_public(parsed)

    def check_host(self, host: str) -> None:
        """Refuse what can be seen from the host alone, where a proxy resolves the names.

        Raises:
            FetchError: the host is a forbidden address, or a name of this machine.
        """
        if self._allows_all:
            return
        name = host.rstrip(".")
        if name in _LOCAL_NAMES or name.endswith(".localhost"):
            # No hosts file is asked: it is the proxy's machine that the name would mean.
            if not self.allows("127.0.0.1"):
                raise refuse(outcomes.BLOCKED_ADDRESS, f"{host} is not public")
            return
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return
        if not self.allows(host):
            raise refuse(outcomes.BLOCKED_ADDRESS, f"{host} is not a public address")

    def addresses(self, host: str) -> Sequence[str]:
        """The allowed addresses of a host, in the resolver's order.

        Of a host with allowed and forbidden addresses the forbidden ones are left out.

        Raises:
            FetchError: the host has addresses, but none that is allowed.
            socket.gaierror: the host has no address, or no name server answers.
        """
        found = self._resolve(host)
        allowed = [address for address in found if self.allows(address)]
        if not allowed:
            is_name = host not in found
            what = f"{host} is at {found[0]}, which" if is_name else host
            raise refuse(outcomes.BLOCKED_ADDRESS, f"{what} is not a public address")
        return allowed

    def _resolve(self, host: str) -> Sequence[str]:
        now = time.monotonic()
        with self._lock:
            known = self._resolved.get(host)
        if known and known[0] > now:
            if isinstance(known[1], socket.gaierror):
                raise socket.gaierror(*known[1].args)
            return known[1]
        answer: Sequence[str] | socket.gaierror
        try:
            # As bytes, because Python's own idna codec is slow and refuses "_".
            rows = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
            answer = list(dict.fromkeys(str(row[4][0]) for row in rows))
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN:
                raise
            answer = error
        with self._lock:
            self._resolved[host] = (now + _KEPT_SECONDS, answer)
            self._resolved.move_to_end(host)
            while len(self._resolved) > _KEPT_NAMES:
                self._resolved.popitem(last=False)
        if isinstance(answer, socket.gaierror):
            raise socket.gaierror(*answer.args)
        return answer


def connect(addresses: Sequence[str], port: int, clock: Clock) -> socket.socket:
    """Connect to the first of some checked addresses that answers.

    Nothing is resolved here.

    Raises:
        OSError: none answers; the first one's error, since the last is often that of a network
            that this machine does not have.
    """
    first: OSError | None = None
    for address in addresses[:_TRIED_ADDRESSES]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            connection = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            first = first or error
            continue
        try:
            connection.settimeout(clock.left())
            connection.connect((address, port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        except OSError as error:
            connection.close()
            first = first or error
        except BaseException:
            connection.close()
            raise
    assert first is not None  # noqa: S101 - there is at least one address
    raise first
