"""The web server of each lab node: Apache, nginx or a small one in Python, with a configuration of its own.

Each serves the node's name at ``/`` and ``ok`` at ``/health``, keeps connections alive for as long as a
measurement may last, and writes only below its own directory. As long as there is a file ``ill`` in it, every
answer is a 503, still with the node's name. Nothing of the host's own server configuration is read.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from nlbfarm.errors import HostError, UsageError

__all__ = ["ILL", "SERVERS", "Server", "choose"]

ILL = "ill"
"""Name of the file in a server's directory that makes it answer 503 to everything."""

_SEARCH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
_MODULES = (
    "/usr/lib/apache2/modules",
    "/usr/lib64/httpd/modules",
    "/usr/lib/httpd/modules",
    "/usr/lib/apache2",
)


@dataclass(frozen=True, slots=True)
class Server:
    """How to run one kind of server.

    Args:
        name: ``"apache"``, ``"nginx"`` or ``"builtin"``.
        detail: One sentence for a person: which program, and why this one.
        argv: Command for a node's directory, in the foreground.
        files: Files that it needs below that directory: path to text, for the directory and the node's name.
        mistake: One of them, and what puts a mistake into its text, with which the server does not start.
    """

    name: str
    detail: str
    argv: Callable[[Path], list[str]]
    files: Callable[[Path, str], Mapping[str, str]]
    mistake: tuple[str, Callable[[str], str]]


def choose(name: str = "auto") -> Server:
    """Return the server called ``name``; ``"auto"`` takes the first that this host has.

    Raises:
        HostError: It was asked for by name and is not installed.
        UsageError: There is no such server.
    """
    if name != "auto":
        if name not in SERVERS:
            raise UsageError(f"no server {name!r}; choose one of auto, {', '.join(SERVERS)}")
        return SERVERS[name]()
    missing = []
    for maker in (_apache, _nginx):
        try:
            return maker()
        except HostError as error:
            missing.append(str(error))
    server = _builtin()
    return replace(server, detail=f"{server.detail} ({'; '.join(missing)})")


def _apache() -> Server:
    program = next(
        (found for name in ("apache2", "httpd") if (found := shutil.which(name, path=_SEARCH))), None
    )
    modules = next((path for path in map(Path, _MODULES) if (path / "mod_mpm_event.so").exists()), None)
    if program is None or modules is None:
        raise HostError(
            "Apache is not installed; install the package apache2-bin (or httpd), or choose --server builtin"
        )

    def files(directory: Path, node: str) -> dict[str, str]:
        wanted = ("mpm_event", "unixd", "authz_core", "dir", "log_config", "rewrite")
        shared = [name for name in wanted if (modules / f"mod_{name}.so").exists()]
        load = "\n".join(f"LoadModule {name}_module {modules}/mod_{name}.so" for name in shared)
        config = f"""\
ServerRoot {directory}
ServerName {node}
{load}
Listen 0.0.0.0:80
PidFile {directory}/apache.pid
ErrorLog {directory}/error.log
{_apache_user()}
# One process with all of its threads, always: Apache closes the connections of a process that it ends for
# want of load, and those that exceed its workers times the factor, whatever the keep-alive timeout says.
StartServers 1
ServerLimit 1
ThreadsPerChild 96
ThreadLimit 96
MaxRequestWorkers 96
MinSpareThreads 1
MaxSpareThreads 96
AsyncRequestWorkerFactor 64
ListenBackLog 1024
KeepAlive On
KeepAliveTimeout 900
MaxKeepAliveRequests 0
DocumentRoot {directory}/htdocs
DirectoryIndex index.html
ErrorDocument 503 "{node}"
RewriteEngine On
RewriteCond "{directory}/{ILL}" -f
RewriteRule ^ - [R=503,L]
<Directory {directory}/htdocs>
    Require all granted
</Directory>
"""
        return {"httpd.conf": config, **_pages(node)}

    def argv(directory: Path) -> list[str]:
        return [*_unprivileged(), program, "-f", f"{directory}/httpd.conf", "-DFOREGROUND"]

    return Server("apache", f"Apache ({program})", argv, files, ("httpd.conf", _misspelt))


def _apache_user() -> str:
    if os.geteuid() != 0:
        return ""
    for name in ("www-data", "apache", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return f"User {name}\nGroup {grp.getgrgid(user.pw_gid).gr_name}"
    return "User #65534\nGroup #65534"


def _nginx() -> Server:
    program = shutil.which("nginx", path=_SEARCH)
    if program is None:
        raise HostError(
            "nginx is not installed; install the package nginx-light (or nginx), or choose --server builtin"
        )

    def files(directory: Path, node: str) -> dict[str, str]:
        paths = "".join(
            f"    {kind}_temp_path {directory}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config = f"""\
daemon off;
{"user root root;" if os.geteuid() == 0 else ""}
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_timeout 900s;
    keepalive_requests 100000000;
{paths}    server {{
        listen 80 backlog=1024;
        root {directory}/htdocs;
        index index.html;
        if (-f {directory}/{ILL}) {{ return 503 "{node}\\n"; }}
    }}
}}
"""
        return {"nginx.conf": config, **_pages(node)}

    def argv(directory: Path) -> list[str]:
        # -e: without it, nginx opens its compiled-in log under /var/log before it has read the configuration.
        return [
            *_unprivileged(),
            program,
            "-e",
            f"{directory}/error.log",
            "-p",
            str(directory),
            "-c",
            f"{directory}/nginx.conf",
        ]

    return Server("nginx", f"nginx ({program})", argv, files, ("nginx.conf", _misspelt))


def _builtin() -> Server:
    def argv(directory: Path) -> list[str]:
        return [sys.executable, "-m", "nlbfarm.lab.webserver", "80", f"{directory}/htdocs"]

    detail = "the small server in Python that comes along"
    mistake = ("htdocs/index.html", lambda _text: "")
    return Server("builtin", detail, argv, lambda _directory, node: _pages(node), mistake)


def _pages(node: str) -> dict[str, str]:
    return {"htdocs/index.html": f"{node}\n", "htdocs/health": "ok\n"}


def _misspelt(text: str) -> str:
    return re.sub("listen", "lissten", text, count=1, flags=re.IGNORECASE)


def _unprivileged() -> list[str]:
    """Return what a real server needs in front of it in an ordinary user's lab.

    Root is the only user that exists there, and Apache and nginx refuse, or fail, to change to another
    one: they run in a user namespace of their own, as nobody in particular.
    """
    if os.geteuid() == 0:
        return []
    return ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--"]


SERVERS: Mapping[str, Callable[[], Server]] = {"apache": _apache, "nginx": _nginx, "builtin": _builtin}
"""The servers that can be asked for by name."""
