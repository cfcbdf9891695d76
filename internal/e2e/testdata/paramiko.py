# Runs a command over paramiko: HOST USER KEYFILE COMMAND...
# The host's key is in a file beside this one.
import sys

# The folder of this file has a name that would hide the library.
folder = sys.path.pop(0)
import paramiko

host, user, key_file, *words = sys.argv[1:]
client = paramiko.SSHClient()
client.load_system_host_keys(folder + "/known_hosts")
client.set_missing_host_key_policy(paramiko.RejectPolicy())
client.connect(host, username=user, key_filename=key_file, allow_agent=False, look_for_keys=False, timeout=60)
_, out, err = client.exec_command(" ".join(words), timeout=60)
sys.stdout.write(out.read().decode())
sys.stderr.write(err.read().decode())
status = out.channel.recv_exit_status()
client.close()
sys.exit(status)
