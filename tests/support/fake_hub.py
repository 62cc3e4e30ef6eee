"""A Hub with datasets of our own, at an address of this machine."""

import http.server
import json
import threading
from hashlib import sha1
from pathlib import Path

COMMIT = "a" * 40


def serve(datasets: dict[str, dict[str, str]]) -> http.server.ThreadingHTTPServer:
    """Serve the files of each dataset by their names; the address is `server_address`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.split("?")[0].removeprefix("/api").removeprefix("/datasets/")
            owner, name, what, _, *rest = [*path.split("/"), "", ""]
            name, file = f"{owner}/{name}", "/".join(rest).strip("/")
            self.send(*self.answer(name, datasets.get(name), what, file))

        do_HEAD = do_POST = do_GET

        def answer(self, name, files, what, file):
            if files is None:
                return 404, b"{}", {"X-Error-Code": "RepoNotFound"}
            if what == "resolve":
                if file not in files:
                    return 404, b"{}", {"X-Error-Code": "EntryNotFound"}
                content = files[file].encode()
                return 200, content, {"ETag": f'"{sha1(content).hexdigest()}"'}
            listed = [
                {"type": "file", "path": file, "size": len(text), "oid": "b" * 40}
                for file, text in files.items()
            ]
            folders = {parent.as_posix() for one in files for parent in Path(one).parents}
            listed += [{"type": "directory", "path": one, "oid": "c" * 40} for one in folders]
            if what == "paths-info":
                size = int(self.headers.get("Content-Length", 0))
                asked = json.loads(self.rfile.read(size) or b"{}").get("paths", [])
                return 200, json.dumps([one for one in listed if one["path"] in asked]), {}
            if what == "tree":
                inside = [one for one in listed if one["path"].startswith(file and f"{file}/")]
                return 200, json.dumps(inside), {}
            info = {"_id": "1", "id": name, "sha": COMMIT, "private": False, "gated": False}
            info |= {"disabled": False, "tags": [], "downloads": 0, "likes": 0}
            return 200, json.dumps(info | {"siblings": [{"rfilename": f} for f in files]}), {}

        def send(self, code, body, headers):
            body = body if isinstance(body, bytes) else body.encode()
            self.send_response(code)
            for key, value in {"X-Repo-Commit": COMMIT, **headers}.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
