"""Peer: nginx with the nchan module; a client publishes and subscribes on one WebSocket.

One worker, messages in memory, nothing kept for those who come later: subscribers start with the
newest message and the channel's buffer is as short as its documentation allows for live traffic.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.macro.peers.external import host, required
from benchmarks.macro.places import DEBIAN

NGINX = DEBIAN / "usr" / "sbin" / "nginx"
MODULE = DEBIAN / "usr" / "lib" / "nginx" / "modules" / "ngx_nchan_module.so"
LIBRARIES = DEBIAN / "usr" / "lib" / "x86_64-linux-gnu"
CONFIGURATION = """
load_module {module};
daemon off;
{user}
worker_processes 1;
worker_rlimit_nofile 20000;
pid {directory}/nginx.pid;
error_log stderr error;
events {{ worker_connections 19000; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    nchan_shared_memory_size 512M;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location ~ ^/room/(\\w+)$ {{
            nchan_pubsub websocket;
            nchan_channel_id $1;
            nchan_subscriber_first_message newest;
            nchan_store_messages on;
            nchan_message_buffer_length 1024;
            nchan_message_timeout 5s;
        }}
    }}
}}
"""


def main() -> None:
    """Run nginx until stdin ends."""
    import os

    with tempfile.TemporaryDirectory(prefix="falcon-bench-") as directory:

        def command(port: int) -> Sequence[str]:
            required(NGINX, "nginx with nchan")
            required(MODULE, "nginx with nchan")
            # A worker of root would become somebody who cannot read the directory.
            user = "user root;" if os.geteuid() == 0 else ""
            file = Path(directory, "nginx.conf")
            file.write_text(
                CONFIGURATION.format(module=MODULE, directory=directory, port=port, user=user)
            )
            return [str(NGINX), "-p", directory, "-c", str(file), "-e", "stderr"]

        host(command, versions, {"LD_LIBRARY_PATH": str(LIBRARIES)})


def versions() -> dict[str, str]:
    """Return nginx's version, from itself, and nchan's, from the package."""
    done = subprocess.run([str(NGINX), "-v"], capture_output=True, text=True, check=False)
    packages = [path.name for path in DEBIAN.glob("libnginx-mod-nchan_*.deb")]
    nchan = packages[0].split("_")[1].replace("%3a", ":") if packages else "unknown"
    return {"nginx": done.stderr.strip().rpartition("/")[2], "nchan": nchan}


if __name__ == "__main__":
    main()
