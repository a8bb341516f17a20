"""The state folder of one `collegium serve`: registry, secrets (mode 0600), logs."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

ROUTERS = "routers"


class StateFolder:
    """Paths and secrets under one folder of mode 0700.

    COLLEGIUM_INTERNAL_KEY and COLLEGIUM_ADMIN_KEY override what is kept here, so that several machines can share them.
    """

    def __init__(self, path: Path) -> None:
        """Use `path`, making it where it is missing."""
        self.path = path.expanduser().absolute()
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def registry_url(self) -> str:
        return f"sqlite:///{self.path / 'registry.db'}"

    @property
    def logs(self) -> Path:
        folder = self.path / "logs"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    @property
    def routers(self) -> Path:
        """Folder of the promoted routers, each under its version."""
        return self.path / ROUTERS

    @property
    def ray_token_file(self) -> Path:
        """File with Ray's cluster token; made on first use."""
        self._secret("ray.token")
        return self.path / "ray.token"

    def internal_key(self) -> str:
        """The secret that every engine's key is derived from."""
        return os.environ.get("COLLEGIUM_INTERNAL_KEY") or self._secret("internal.key")

    def admin_key(self) -> str:
        return os.environ.get("COLLEGIUM_ADMIN_KEY") or self._secret("admin.key")

    def _secret(self, name: str) -> str:
        file = self.path / name
        if not file.exists():
            fresh = file.with_name(f".{name}.{os.getpid()}")
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as handle:
                handle.write(secrets.token_hex(32))
            try:
                os.link(fresh, file)  # the first of several writers wins
            except FileExistsError:
                pass
            finally:
                fresh.unlink()
        return file.read_text().strip()


def engine_key(internal_key: str, engine: str) -> str:
    """The API key of one engine, derived so that a restart and every edge know it without storing it."""
    return hmac.new(internal_key.encode(), f"engine:{engine}".encode(), hashlib.sha256).hexdigest()
