"""The report in a real browser: pictures are drawn, no script fails, nothing is fetched."""

import http.server
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dropkit import study

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--v=0"),
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")

MEASURE = """
<script>
addEventListener("load", () => {
  const drawn = [...document.querySelectorAll("figure svg")].map(svg => {
    const box = svg.getBoundingClientRect();
    return svg.querySelectorAll("path").length > 5 && box.width > 300 && box.height > 50;
  });
  const fetched = performance.getEntriesByType("resource").map(entry => entry.name);
  const boxes = [document.documentElement, document.querySelector(".scroll")];
  const wide = boxes.some(box => box.scrollWidth > box.clientWidth);
  document.title = "MEASURED " + JSON.stringify({drawn, fetched, wide});
});
</script>
"""


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A server of the folder on this machine, and every path that it was asked for."""
    paths: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, form: str, *arguments: object) -> None:
            paths.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", paths
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_user_opens_the_report(asked: tuple[str, list[str]], tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    rows = [
        f"{row % 17},{'red' if row % 3 else 'blue'},{'yes' if row % 17 + row % 5 > 9 else 'no'}" for row in range(300)
    ]
    table.write_text("\n".join(["count,colour,bought", *rows]))
    small = {"network": [8], "epochs": 3, "rates": [0.2], "methods": ["dropout", "batch_norm", "linear"]}
    result = study.run(str(table), target="bought", directory=tmp_path / "run", **small)
    page = result.report.read_text(encoding="utf-8")
    assert "category, 2 values" in page
    (tmp_path / "page.html").write_text(page.replace("</body>", f"{MEASURE}</body>"), encoding="utf-8")
    url, paths = asked
    command = [
        str(BROWSER),
        *FLAGS,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1250,900",
        "--virtual-time-budget=5000",
        "--dump-dom",
    ]
    done = subprocess.run([*command, f"{url}/page.html"], capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"<title>MEASURED (.*?)</title>", done.stdout)
    assert found, done.stdout[:300]
    assert found[1] == '{"drawn":[true,true,true,true,true,true,true],"fetched":[],"wide":false}'
    assert "CONSOLE" not in done.stderr
    assert set(paths) <= {"/page.html", "/favicon.ico"}  # the second is the browser's own wish
