import time
import urllib.request
from dataclasses import dataclass


@dataclass(frozen=True)
class FetchPolicy:
    timeout: float = 10
    max_seconds: float = 60
    max_bytes: int = 20_000_000
    per_host: int = 8
    allowed_networks: tuple = ()
    honour_opt_outs: bool = True
    blocked_domains: frozenset = frozenset()
    host_failures: int = 10
    host_pause: float = 60
    robots_cache: str | None = None


@dataclass(frozen=True)
class Visit:
    outcome: str | None
    detail: str
    retryable: bool
    retry_after: float | None
    seconds: float
    bytes: int | None
    final_url: str | None
    content_type: str | None


class GuardedOpener:
    def __init__(self, policy):
        self.inner = urllib.request.build_opener()
        self.visits = {}

    def install(self):
        urllib.request.install_opener(self)

    def release_large(self, n):
        pass

    def take(self, url):
        return self.visits.pop(url)

    def open(self, request, data=None, timeout=10):
        t = time.time()
        url = request.full_url
        try:
            r = self.inner.open(request, data, timeout)
        except urllib.error.HTTPError as e:
            self.visits[url] = Visit(
                f"http {e.code // 100}xx",
                str(e),
                e.code >= 500,
                None,
                time.time() - t,
                None,
                None,
                None,
            )
            raise
        except Exception as e:
            self.visits[url] = Visit(
                "refused", str(e), True, None, time.time() - t, None, None, None
            )
            raise
        self.visits[url] = Visit(
            None,
            "",
            False,
            None,
            time.time() - t,
            int(r.headers.get("Content-Length") or 0),
            r.url,
            r.headers.get("Content-Type"),
        )
        return r
