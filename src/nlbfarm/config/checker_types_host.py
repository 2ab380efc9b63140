"""``[[checkers]]`` that look at this host: processes, resources, certificates, programs of the user's."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BeforeValidator, model_validator

from nlbfarm.config.checker_types import (
    CheckerEntry,
    Command,
    Expression,
    HostName,
    Percent,
    ProcessName,
    UserName,
)
from nlbfarm.config.events import Size
from nlbfarm.config.types import ConfigPath, Duration, Port, UnicastAddress, between, choice, whole

__all__ = ["CertificateChecker", "PortProtocol", "ProcessChecker", "ResourcesChecker", "ScriptChecker"]

_Processes = Annotated[int, BeforeValidator(whole(0, 100_000, "a number of processes"))]
_Files = Annotated[int, BeforeValidator(whole(1, 1_000_000_000, "a number of files"))]


class _OfProcesses(CheckerEntry):
    """Which processes are meant: those that fit all that is given.

    Attributes:
        process: Name of the program.
        executable: Path of the program's file.
        arguments: What has to be found in the command line.
        pid_file: A file with the number of one process.
    """

    process: ProcessName | None = None
    executable: ConfigPath | None = None
    arguments: Expression | None = None
    pid_file: ConfigPath | None = None

    @property
    def selects(self) -> bool:
        """Whether anything is given."""
        return (self.process, self.executable, self.arguments, self.pid_file) != (None,) * 4


class PortProtocol(StrEnum):
    """Protocols that a process can listen on a port of."""

    TCP = "tcp"
    UDP = "udp"


class ProcessChecker(_OfProcesses):
    """Type ``process``: do the processes of an application run, and do they listen?

    Attributes:
        at_least, at_most: How many there have to be; zombies do not count.
        port: One of them has to listen on this port.
        protocol: Of the port.
    """

    type: Literal["process"] = "process"
    at_least: _Processes = 1
    at_most: _Processes | None = None
    port: Port | None = None
    protocol: Annotated[PortProtocol, choice(PortProtocol)] = PortProtocol.TCP

    @model_validator(mode="after")
    def _can_be_meant(self) -> ProcessChecker:
        if not self.selects and self.service is None:
            raise ValueError(
                'says not which processes are meant; write process = "httpd", executable, arguments or '
                "pid_file, or the service that they belong to"
            )
        if self.at_most is not None and self.at_most < self.at_least:
            raise ValueError(f"at_most ({self.at_most}) is less than at_least ({self.at_least})")
        if self.at_least == 0 and self.port is not None:
            raise ValueError("a port needs a process that listens; write at_least = 1, or remove port")
        if self.at_least == 0 and self.at_most is None:
            raise ValueError("at_least = 0 alone can never fail; write at_most, too, or a greater at_least")
        return self


class ResourcesChecker(_OfProcesses):
    """Type ``resources``: is there enough left?

    The limits are those of the selected processes together, of the service's, or else of the host.

    Attributes:
        cpu_percent: Use of all processors together, at most.
        memory_percent: Share of the host's memory in use, at most.
        memory: Memory in use, at most.
        open_files: Open files, at most: of the host, or of the process that has most of them.
        disk_path: A directory of the file system that the next two are about.
        disk_free_percent: Share that has to be free, at least.
        disk_free: What has to be free, at least.
    """

    type: Literal["resources"] = "resources"
    cpu_percent: Percent | None = None
    memory_percent: Percent | None = None
    memory: Size | None = None
    open_files: _Files | None = None
    disk_path: ConfigPath | None = None
    disk_free_percent: Percent | None = None
    disk_free: Size | None = None

    @model_validator(mode="after")
    def _can_be_meant(self) -> ResourcesChecker:
        disk = self.disk_free_percent is not None or self.disk_free is not None
        if disk and self.disk_path is None:
            raise ValueError('disk_path is missing: say which disk is meant, like disk_path = "/srv"')
        if not disk and self.disk_path is not None:
            raise ValueError(
                'a limit for disk_path is missing; write disk_free = "5GB" or disk_free_percent = 10'
            )
        if not disk and (self.cpu_percent, self.memory_percent, self.memory, self.open_files) == (None,) * 4:
            raise ValueError(
                "names no limit; write at least one of cpu_percent, memory_percent, memory, open_files, "
                "disk_free_percent and disk_free"
            )
        return self


class CertificateChecker(CheckerEntry):
    """Type ``certificate``: does a certificate expire soon?

    Attributes:
        file: A file with certificates.
        address, port: A server to ask for them instead.
        server_name: The name that it is asked for.
        expires_within: One that ends within this time is no longer healthy.
    """

    type: Literal["certificate"] = "certificate"
    file: ConfigPath | None = None
    address: UnicastAddress | None = None
    port: Port = 443
    server_name: HostName | None = None
    expires_within: Annotated[Duration, between(timedelta(0), timedelta(days=3650))] = timedelta(days=14)

    @model_validator(mode="after")
    def _one_place(self) -> CertificateChecker:
        if (self.file is None) == (self.address is None):
            both = "both file and address are there" if self.file else "neither file nor address is there"
            raise ValueError(f"{both}; write one of them, to say where the certificate is")
        return self


class ScriptChecker(CheckerEntry):
    """Type ``script``: does a program say that all is well?

    Attributes:
        command: The program and its arguments; exit code 0 is healthy.
        user: The user that it runs as; by default the node's own.
    """

    type: Literal["script"] = "script"
    command: Command
    user: UserName | None = None
