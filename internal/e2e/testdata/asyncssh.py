# Runs a command over asyncssh: HOST USER KEYFILE COMMAND...
import asyncio
import sys

# The folder of this file has a name that would hide the library.
sys.path.pop(0)
import asyncssh

host, user, key_file, *words = sys.argv[1:]


async def main():
    async with asyncssh.connect(
        host, username=user, client_keys=[key_file], agent_path=None, known_hosts="/etc/ssh/ssh_known_hosts"
    ) as conn:
        result = await conn.run(" ".join(words), timeout=60)
    sys.stdout.write(result.stdout)
    sys.stderr.write(result.stderr)
    return result.exit_status


sys.exit(asyncio.run(main()))
