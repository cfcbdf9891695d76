# Runs a command over libssh, the C library: HOST USER KEYFILE COMMAND...
import ctypes
import sys

host, user, key_file, *words = sys.argv[1:]
lib = ctypes.CDLL("libssh.so.4")
lib.ssh_get_error.restype = ctypes.c_char_p
for name in ("ssh_new", "ssh_channel_new"):
    getattr(lib, name).restype = ctypes.c_void_p

# Numbers of enum ssh_options_e, of ssh_known_hosts_e and of return codes. Host
# keys are looked up in /etc/ssh/ssh_known_hosts, as in OpenSSH.
OPTIONS_HOST, OPTIONS_USER = 0, 4
KNOWN_HOSTS_OK = 1
SSH_OK, SSH_AUTH_SUCCESS = 0, 0

session = ctypes.c_void_p(lib.ssh_new())


def need(got, want, what):
    if got != want:
        sys.exit(f"{what}: {got}: {lib.ssh_get_error(session).decode()}")


for option, value in ((OPTIONS_HOST, host), (OPTIONS_USER, user)):
    need(lib.ssh_options_set(session, option, ctypes.c_char_p(value.encode())), SSH_OK, f"option {option}")
need(lib.ssh_connect(session), SSH_OK, "connect")
need(lib.ssh_session_is_known_server(session), KNOWN_HOSTS_OK, "host key")
key = ctypes.c_void_p()
need(lib.ssh_pki_import_privkey_file(key_file.encode(), None, None, None, ctypes.byref(key)), SSH_OK, "read key")
need(lib.ssh_userauth_publickey(session, None, key), SSH_AUTH_SUCCESS, "log in")
channel = ctypes.c_void_p(lib.ssh_channel_new(session))
need(lib.ssh_channel_open_session(channel), SSH_OK, "open session")
need(lib.ssh_channel_request_exec(channel, " ".join(words).encode()), SSH_OK, "exec")
buffer = ctypes.create_string_buffer(65536)
for is_stderr, to in ((0, sys.stdout), (1, sys.stderr)):
    while (n := lib.ssh_channel_read(channel, buffer, len(buffer), is_stderr)) > 0:
        to.write(buffer.raw[:n].decode())
status = lib.ssh_channel_get_exit_status(channel)
lib.ssh_channel_close(channel)
lib.ssh_disconnect(session)
sys.exit(status)
