"""An S3 server on this machine, and a bucket whose key must never be shown."""

from collections.abc import Iterator

import pytest
from pyarrow import fs

SECRET = "very-secret-key"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket, as `s3://user:secret@bucket{}?query`, with a place for the path."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    query = f"scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1&allow_bucket_creation=true"
    template = f"s3://user:{SECRET}@bucket{{}}?{query}"
    filesystem, _ = fs.FileSystem.from_uri(template.format(""))
    filesystem.create_dir("bucket")
    yield template
    server.stop()
