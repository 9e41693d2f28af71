"""The promise of SECURITY.md that nothing is sent: a whole run with every socket blocked."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKED = """if True:
    import socket, sys
    def refuse(*_args, **_keywords):
        raise RuntimeError("a socket was opened")
    socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
    import pytest
    sys.exit(pytest.main(["-p", "no:cacheprovider", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_a_whole_run_opens_no_socket(tmp_path):
    """A gate of embedded models and directories sends nothing; a model that is not here is refused when offline."""

    def run(*arguments):
        command = [sys.executable, "-c", BLOCKED, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    done = run("--model=tiny", "--candidate=rtn:bits=8,block=128", "-q", "-k", "located or super_weights or perplexity")
    assert (done.returncode, "a socket was opened" in done.stdout + done.stderr) == (0, False)
    done = run("--model=nobody/nothing", "--swcheck-offline")
    assert (done.returncode, "downloads are forbidden" in done.stderr) == (4, True)
    assert "a socket was opened" not in done.stdout + done.stderr
