"""
Run a broker that is configured by a file: ``python -m benchmarks.brokers nchan PORT DIRECTORY``.

The file goes into the directory, and the broker takes the place of this process.
"""

import os
import sys
from pathlib import Path

from .processes import HOST

NCHAN_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
"""Where Debian has it."""
NCHAN = """
load_module {module};
daemon off;
worker_processes 1;
worker_rlimit_nofile {files};
pid {directory}/nginx.pid;
events {{ worker_connections {files}; }}
http {{
  access_log off;
  client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
  uwsgi_temp_path {directory}; scgi_temp_path {directory};
  server {{
    listen {host}:{port};
    location ~ ^/ws/(.+)/$ {{ nchan_subscriber websocket; nchan_channel_id $1; }}
    location ~ ^/publish/(.+)$ {{
      nchan_publisher websocket; nchan_channel_id $1; nchan_message_buffer_length 1;
    }}
  }}
}}
"""
NATS = """
host: {host}
port: -1
ping_interval: "10m"
max_connections: {files}
websocket {{ host: {host}, port: {port}, no_tls: true }}
"""
COMMANDS = {
    "nchan": (NCHAN, ["nginx", "-e", "stderr", "-c"]),
    "nats": (NATS, ["nats-server", "--config"]),
}


if __name__ == "__main__":
    name, port, directory = sys.argv[1:]
    text, command = COMMANDS[name]
    file = Path(directory) / f"{name}-{port}.conf"
    files = os.sysconf("SC_OPEN_MAX")
    file.write_text(text.format(module=NCHAN_MODULE, files=files, host=HOST, port=port, directory=directory))
    os.execvp(command[0], [*command, str(file)])
