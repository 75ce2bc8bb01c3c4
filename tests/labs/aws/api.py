"""The lab's AWS: moto's EC2, STS, IAM and S3 on its network, the metadata service, and a socket for the test.

Started by process 1 of the lab: `python -m tests.labs.aws.api FOLDER IMAGE WHEELS`.
"""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from moto.ec2.models import ec2_backends
from moto.ec2.models.instances import StateReason
from moto.iam.models import iam_backends
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from tests.labs.aws.faults import Denial, Faults, Refusal, Request
from tests.labs.aws.hosts import Hosts, ip
from tests.labs.aws.metadata import ADDRESS, ROLE, Metadata, StartResponse
from tests.labs.aws.places import ACCOUNT_ID, GATEWAY, PORT, REGIONS

Environ = dict[str, Any]
_SCOPE = re.compile(r"Credential=[^/]+/\d+/([^/]+)/([^/]+)/")  # region, service
ADDRESSES_PER_ZONE = 100
_STARTS, _ENDS = ("RunInstances",), ("StopInstances", "TerminateInstances")
_INSTANCE = re.compile(rb"<instanceId>(i-[0-9a-f]+)</instanceId>")
_XMLNS = "http://ec2.amazonaws.com/doc/2016-11-15/"
_NO_RESERVATIONS = (  # moto 5.2.5 answers 500
    f'<DescribeCapacityReservationsResponse xmlns="{_XMLNS}"><capacityReservationSet/>'
    "</DescribeCapacityReservationsResponse>"
)


class Api:
    """moto behind faults, and a record of what started and ended machines. A WSGI application."""

    def __init__(self, after_change: Callable[[], None]) -> None:
        self.faults = Faults()
        self.calls: list[dict[str, Any]] = []
        self._after_change = after_change
        self._moto = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        region, service = _scope(environ)
        if service != "ec2":
            return self._moto(environ, start_response)  # type: ignore[no-any-return]
        form = dict(parse_qsl(_body(environ).decode()))
        request = _request(form, region)
        time.sleep(self.faults.delay_seconds(request))
        if refusal := self.faults.refusal(request):
            self._record(request, form, error=refusal.code)
            return _refuse(refusal, start_response)
        return self.answer(request, form, environ, start_response)

    def answer(
        self, request: Request, form: dict[str, str], environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes]:
        """What EC2 says when nothing is wrong with it."""
        if request.action == "DescribeCapacityReservations":
            start_response("200 OK", [("Content-Type", "text/xml")])
            return [_NO_RESERVATIONS.encode()]
        if request.action not in _STARTS + _ENDS:
            return self._moto(environ, start_response)  # type: ignore[no-any-return]
        return self._recorded(request, form, environ, start_response)

    def interrupt(self, instance: Any) -> None:
        """What EC2 does to a spot instance whose capacity it wants back, unless it has it."""
        if instance.state != "running":
            return
        instance.ec2_backend.terminate_instances([instance.id])
        code = "Server.SpotInstanceTermination"
        instance.state_reason = StateReason(f"{code}: Spot instance termination", code)
        self._ended("SpotInterruption", instance)

    def shut_down(self, instance: Any) -> None:
        """A machine that halts is stopped, or terminated if it was asked for so."""
        if instance.instance_initiated_shutdown_behavior == "terminate":
            instance.ec2_backend.terminate_instances([instance.id])
        else:
            instance.ec2_backend.stop_instances([instance.id])
        self._ended("Shutdown", instance)

    def _ended(self, why: str, instance: Any) -> None:
        self.calls.append({"at": time.time(), "action": why, "region": _region(instance), "instances": [instance.id]})
        self._after_change()

    def _recorded(
        self, request: Request, form: dict[str, str], environ: Environ, start_response: StartResponse
    ) -> list[bytes]:
        said: list[str] = []

        def remember(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            said.append(status)
            return start_response(status, headers, *rest)

        content = b"".join(self._moto(environ, remember))
        if said[0].startswith("200"):
            self._record(request, form, started=_names(content))
            self._after_change()
        else:
            code = re.search(rb"<Code>(.+?)</Code>", content)
            self._record(request, form, error=code.group(1).decode() if code else said[0])
        return [content]

    def _record(
        self, request: Request, form: dict[str, str], *, started: Iterable[str] = (), error: str | None = None
    ) -> None:
        call: dict[str, Any] = {"at": time.time(), "action": request.action, "region": request.region, "error": error}
        if request.action in _STARTS:
            call |= {"instance_type": request.instance_type, "spot": request.spot, "zone": request.zone}
            call |= {"instances": list(started), "tags": _tags(form)}
        elif request.action in _ENDS:
            call["instances"] = [value for key, value in form.items() if key.startswith("InstanceId.")]
        else:
            return
        self.calls.append(call)


class Desk:
    """What the test may order over the socket, `/lab/<order>`; all else is for EC2, which is never at fault here."""

    def __init__(self, api: Api, metadata: Metadata) -> None:
        self.api, self.metadata = api, metadata
        self.orders: dict[str, Callable[..., Any]] = {
            "ready": lambda: True,
            "calls": lambda: self.api.calls,
            "allow": self.api.faults.allow,
            "deny": lambda **rule: self.api.faults.deny(Denial(**rule)),
            "fail": self.api.faults.fail,
            "slow": self.api.faults.slow,
            "preempt": self._preempt,
        }

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        order = environ["PATH_INFO"].removeprefix("/lab/")
        if order == environ["PATH_INFO"]:
            form = dict(parse_qsl(_body(environ).decode()))
            return self.api.answer(_request(form, _scope(environ)[0]), form, environ, start_response)
        try:
            answer = self.orders[order](**json.loads(_body(environ)))
            start_response("200 OK", [("Content-Type", "application/json")])
        except Exception as error:  # the test shall read it
            start_response("400 Bad Request", [("Content-Type", "application/json")])
            answer = repr(error)
        return [json.dumps(answer).encode()]

    def _preempt(self, instance: str, notice_seconds: float) -> None:
        found = next(one for one in instances() if one.id == instance)
        if notice_seconds:
            self.metadata.ends[instance] = datetime.now(UTC) + timedelta(seconds=notice_seconds)
            threading.Timer(notice_seconds, self.api.interrupt, [found]).start()
        else:
            self.api.interrupt(found)


def instances() -> Iterator[Any]:
    """moto's, of the lab's regions."""
    for region in REGIONS:
        yield from ec2_backends[ACCOUNT_ID][region].all_instances()


def _region(instance: Any) -> str:
    return str(instance.availability_zone[:-1])


def _names(content: bytes) -> list[str]:
    return list(dict.fromkeys(name.decode() for name in _INSTANCE.findall(content)))


def _body(environ: Environ) -> bytes:
    """The request's body, which stays readable."""
    body: bytes = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = io.BytesIO(body)
    return body


def _scope(environ: Environ) -> tuple[str, str]:
    """Region and service, of the signature."""
    scope = _SCOPE.search(environ.get("HTTP_AUTHORIZATION", ""))
    return (scope.group(1), scope.group(2)) if scope else ("", "")


def _request(form: dict[str, str], region: str) -> Request:
    subnet = form.get("NetworkInterface.1.SubnetId") or form.get("SubnetId")
    return Request(
        action=form.get("Action", ""),
        region=region,
        instance_type=form.get("InstanceType", ""),
        spot=form.get("InstanceMarketOptions.MarketType") == "spot",
        zone=form.get("Placement.AvailabilityZone") or (_zone(subnet) if subnet else ""),
    )


def _zone(subnet: str) -> str:
    for region in REGIONS:
        for zone, subnets in ec2_backends[ACCOUNT_ID][region].subnets.items():
            if subnet in subnets:
                return str(zone)
    return ""


def _tags(form: dict[str, str]) -> dict[str, str]:
    """Of the instance, as RunInstances was asked for them."""
    tags = {}
    for key, name in form.items():
        if match := re.fullmatch(r"(TagSpecification\.\d+)\.(Tag\.\d+)\.Key", key):
            spec, tag = match.groups()
            if form.get(f"{spec}.ResourceType") == "instance":
                tags[name] = form.get(f"{spec}.{tag}.Value", "")
    return tags


def _refuse(refusal: Refusal, start_response: StartResponse) -> list[bytes]:
    start_response(refusal.status, [("Content-Type", "text/xml")])
    error = f"<Error><Code>{refusal.code}</Code><Message>{refusal.message}</Message></Error>"
    return [f"<Response><Errors>{error}</Errors><RequestID>lab</RequestID></Response>".encode()]


def _seed() -> None:
    """What every account has, and moto's has not: a way out of the default VPC; and the role of the machines.

    The default VPCs of all regions have the same range, and here the same wire: each region keeps off the others'.
    """
    for number, region in enumerate(REGIONS):
        backend = ec2_backends[ACCOUNT_ID][region]
        for subnet in backend.describe_subnets():
            subnet.aws_reserved_ips |= {subnet.cidr[place] for place in range(number * ADDRESSES_PER_ZONE)}
        vpc = backend.get_default_vpc()
        assert vpc
        gateway = backend.create_internet_gateway()
        backend.attach_internet_gateway(gateway.id, vpc.id)
        table = backend.describe_route_tables(filters={"vpc-id": [vpc.id]})[0]
        backend.create_route(table.id, "0.0.0.0/0", gateway_id=gateway.id)
    iam_backends[ACCOUNT_ID]["aws"].create_instance_profile(ROLE, "/", [])


class _Quiet(WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Polls are not worth a line each."""

    def address_string(self) -> str:
        return "socket" if isinstance(self.client_address, str | bytes) else str(super().address_string())


def _serve(address: str, port: int, application: Any) -> BaseWSGIServer:
    server = make_server(address, port, application, threaded=True, request_handler=_Quiet)
    threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
    return server


def _at_address(address: str) -> Any:
    """The instance that is up there: a dead one's address is given again."""
    return next((one for one in instances() if one.private_ip == address and one.state == "running"), None)


def main(folder: Path, image: Path, wheels: Path) -> None:
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", level=logging.WARNING)
    ip(
        "link set lo up",
        "link add br0 type bridge",
        f"addr add {GATEWAY}/16 dev br0",
        f"addr add {ADDRESS}/32 dev br0",
        "link set br0 up",
    )
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")  # who wants to go out is told at once that there is no way
    _seed()
    look = threading.Event()
    api = Api(look.set)
    metadata = Metadata(_at_address)
    _serve(GATEWAY, PORT, api)
    _serve(ADDRESS, 80, metadata)
    _serve(f"unix://{folder / 'socket'}", 0, Desk(api, metadata))
    Hosts(folder / "hosts", image=image, wheels=wheels, instances=instances, after_shutdown=api.shut_down).follow(look)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
