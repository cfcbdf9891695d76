package proxy

import (
	"errors"
	"regexp"
	"strings"
	"testing"
)

// Guards against a client that is refused although it is an ordinary Nix of some
// version, or has its remote-program set.
func TestCommandsOfNixClientsAreRecognised(t *testing.T) {
	for _, text := range []string{
		"nix-daemon --stdio", // Nix, every version
		"nix-daemon --stdio --process-ops",
		"/opt/nix/bin/nix-daemon --stdio",
		"/nix/var/nix/profiles/default/bin/nix-daemon --stdio",
		"/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-nix-2.34.8+1_2/bin/nix-daemon --stdio --process-ops",
		"~/.nix-profile/bin/nix-daemon --stdio",
		"/home/nix@example.org/bin/nix-daemon --stdio",
		"./nix-daemon --stdio",
		"nix-daemon  --stdio", // remote-program with a blank at its end
		" nix-daemon --stdio ",
	} {
		if got, err := parseCommand(text); got != commandDaemon || err != nil {
			t.Errorf("parseCommand(%q) = %v, %v; want the daemon", text, got, err)
		}
	}
}

// Guards against a refusal that leaves the user alone: what cannot be done here
// is said, with what to do instead.
func TestWhatIsNotServedIsRefusedWithAdvice(t *testing.T) {
	for _, c := range []struct {
		text string
		err  error
	}{
		{"nix-store --serve --write", errServeProtocol},
		{"nix-store --serve", errServeProtocol},
		{"/opt/nix/bin/nix-store --serve --write", errServeProtocol},
		{"nix-store --serve --write --store 'local?root=/x'", errServeProtocol},
		{"nix-store --serve --write --store local?root=/x&trusted=1", errServeProtocol},
		{"nix-store --serve --store=daemon", errServeProtocol},
		{"nix-daemon --stdio --store 'ssh-ng://elsewhere?a=b&c=d'", errRemoteStore}, // up to Nix 2.19
		{"nix-daemon --stdio --store ssh-ng://elsewhere?a=b&c=d", errRemoteStore},   // since Nix 2.20
		{"nix-daemon --stdio --store ssh-ng://elsewhere --process-ops", errRemoteStore},
		{"nix-daemon --stdio --store 'local?root=/a b'", errRemoteStore},
		{"nix-daemon --stdio --store=/x", errRemoteStore},
		{"nix-daemon --stdio --store", errRemoteStore},
	} {
		if got, err := parseCommand(c.text); got != commandUnknown || !errors.Is(err, c.err) {
			t.Errorf("parseCommand(%q) = %v, %v; want %v", c.text, got, err, c.err)
		}
	}
	for err, advice := range map[error]string{errServeProtocol: "ssh-ng://", errRemoteStore: "remove it", errUnknownCommand: "ssh-ng://"} {
		if !strings.Contains(err.Error(), advice) || strings.Contains(err.Error(), "\n") {
			t.Errorf("refusal %q is not one line with %q in it", err, advice)
		}
	}
}

// Guards against mistaking for Nix anything that is not exactly its command.
func TestEveryOtherCommandIsRefused(t *testing.T) {
	for _, text := range []string{
		// nothing, and parts
		"", " ", "nix-daemon", "nix-daemon ", "--stdio", "nix", "nix-daemon stdio", "nix-daemon -stdio", "nix-daemon --stdi",
		"nix-daemon --stdioo", "nix-daemon --stdio=1", "nix-daemon-- stdio", "nix-daemon--stdio", "stdio nix-daemon",
		// other commands and other words
		"true", "sh", "rm -rf /", "nix daemon --stdio", "nix-daemon --daemon", "nix-daemon --force-trusted --stdio",
		"nix-daemon --stdio --force-trusted", "nix-daemon --stdio --stdio", "nix-daemon --stdio --process-ops --process-ops",
		"nix-daemon --stdio --process-ops --store x", "nix-daemon --stdio --option sandbox false", "nix-daemon --stdio -",
		"nix-store --realise /nix/store/x", "nix-store --serve --read", "nix-store --serve --write --write", "nix-store --serve --write x",
		"nix-store --serve; sh", "nix-store --serve --write; sh", "nix-store", "nix-copy-closure --to x", "sudo nix-daemon --stdio",
		"env PATH=/x nix-daemon --stdio", "exec nix-daemon --stdio", "sh -c 'nix-daemon --stdio'", "scp -t /tmp", "internal-sftp",
		// shells
		"nix-daemon --stdio; sh", "nix-daemon --stdio ;sh", "nix-daemon --stdio && id", "nix-daemon --stdio || id", "nix-daemon --stdio | sh",
		"nix-daemon --stdio &", "nix-daemon --stdio > /etc/passwd", "nix-daemon --stdio < /etc/shadow", "nix-daemon --stdio $(id)",
		"nix-daemon --stdio `id`", "nix-daemon --stdio #", "nix-daemon --stdio \\", "nix-daemon --stdio *", "nix-daemon --stdio {a,b}",
		"$(id)/nix-daemon --stdio", "`id`/nix-daemon --stdio", "$HOME/bin/nix-daemon --stdio", ";sh;/nix-daemon --stdio", "a|b/nix-daemon --stdio",
		"(nix-daemon --stdio)", "!nix-daemon --stdio", "x=1;nix-daemon --stdio",
		// quotes
		"'nix-daemon' --stdio", "\"nix-daemon\" --stdio", "'nix-daemon --stdio'", "nix-daemon '--stdio'", "nix-daemon \"--stdio\"",
		"nix-daemon --stdio ''", "nix-daemon --stdio '", "nix-d\\aemon --stdio", "nix-daemon --st''dio",
		// control bytes and other blanks
		"nix-daemon\x00 --stdio", "nix-daemon --stdio\x00", "nix-daemon --stdio\x00; sh", "nix-daemon --stdio\n", "nix-daemon --stdio\nid",
		"nix-daemon\n--stdio", "nix-daemon\t--stdio", "nix-daemon\r--stdio", "nix-daemon --stdio\r\n", "nix-daemon\v--stdio", "nix-daemon --stdio\x1b[2J",
		"nix-daemon --stdio\x7f", "\x08nix-daemon --stdio",
		// Unicode and what is none
		"ⅿix-daemon --stdio", "nix-dаemon --stdio", "nix‐daemon --stdio", "nix-daemon —stdio", "nix-daemon\u00a0--stdio", "nix-daemon\u2003--stdio",
		"nix-daemon\u0085--stdio", "nix-daemon --stdio\u200b", "\ufeffnix-daemon --stdio", "nix-daemon --stdio\u202e", "nix-daemon --stdio \xff", "\xc0\xafnix-daemon --stdio",
		// names
		"xnix-daemon --stdio", "nix-daemonx --stdio", "nix-daemon/ --stdio", "/nix-daemon/ --stdio", "NIX-DAEMON --stdio", "nix-daemon --STDIO",
		"nix-daemon.exe --stdio", "/bin/sh/../nix-daemon2 --stdio", "C:\\nix-daemon --stdio", "-nix-daemon --stdio",
		// sizes
		strings.Repeat("x", 4096), strings.Repeat("nix-daemon ", 300), "nix-daemon --stdio " + strings.Repeat("--process-ops ", 200),
		"nix-daemon --stdio " + strings.Repeat("x", 4000), strings.Repeat("(", 4000),
	} {
		if got, err := parseCommand(text); got != commandUnknown || !errors.Is(err, errUnknownCommand) {
			t.Errorf("parseCommand(%.80q) = %v, %v; want it refused", text, got, err)
		}
	}
}

// Guards against a form that nobody thought of.
func FuzzParseCommand(f *testing.F) {
	for _, seed := range []string{"nix-daemon --stdio", "/a/nix-daemon --stdio --process-ops", "nix-store --serve --write", "nix-daemon --stdio --store 'x'", "nix-daemon --stdio; sh", "\x00"} {
		f.Add(seed)
	}
	exact := regexp.MustCompile(`\A *([A-Za-z0-9/._+@~=,:%-]*/)?nix-daemon +--stdio( +--process-ops)? *\z`)
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseCommand(text)
		if (err == nil) != (got == commandDaemon) {
			t.Fatalf("parseCommand(%q) = %v, %v", text, got, err)
		}
		if (err == nil) != exact.MatchString(text) {
			t.Fatalf("parseCommand(%q) = %v, %v; the exact form says otherwise", text, got, err)
		}
	})
}
