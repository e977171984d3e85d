"""Calls an xds:/// target until the set of servers that answer a round of calls
is the wanted one, then prints it. Usage: client.py TARGET SECONDS ADDRESS..."""
import sys
import time

import grpc

target, seconds, want = sys.argv[1], float(sys.argv[2]), sorted(sys.argv[3:])
deadline = time.monotonic() + seconds
got = []
with grpc.insecure_channel("xds:///" + target) as channel:
    call = channel.unary_unary(
        "/isthmus.test.Who/AmI",
        request_serializer=lambda _: b"",
        # StringValue: tag, length, bytes.
        response_deserializer=lambda b: b[2:].decode(),
    )
    while time.monotonic() < deadline:
        got = sorted({call(None, wait_for_ready=True, timeout=seconds) for _ in range(40)})
        if got == want:
            print("reached", *got)
            sys.exit(0)
        time.sleep(0.05)
print("wanted", *want, "but reached", *got)
sys.exit(1)
