package proxy

import (
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"

	"nixbastion/policy"
)

// Guards against a client that is refused although it is an ordinary Nix of some
// version, or has its remote-program set.
func TestCommandsOfNixClientsAreRecognised(t *testing.T) {
	for text, want := range map[string]command{
		"nix-daemon --stdio":               {kind: commandDaemon}, // Nix, every version
		"nix-daemon --stdio --process-ops": {kind: commandDaemon},
		"nix-store --serve --write":        {kind: commandServe, write: true}, // Nix, every version
		"nix-store --serve":                {kind: commandServe},              // a forced command of nix.sshServe

		// remote-program, a path
		"/opt/nix/bin/nix-daemon --stdio":                             {kind: commandDaemon},
		"/nix/var/nix/profiles/default/bin/nix-daemon --stdio":        {kind: commandDaemon},
		"~/.nix-profile/bin/nix-daemon --stdio":                       {kind: commandDaemon},
		"/home/nix@example.org/bin/nix-daemon --stdio":                {kind: commandDaemon},
		"./nix-daemon --stdio":                                        {kind: commandDaemon},
		"/run/current-system/sw/bin/nix-store --serve --write":        {kind: commandServe, write: true},
		"'/opt/my nix/../nix/bin/nix-daemon' --stdio":                 {},
		"/nix/store/00bgd045-nix-2.34.8+1_2/bin/nix-daemon --stdio":   {kind: commandDaemon},
		"/nix/store/00bgd045-nix-2.3/bin/nix-store --serve --write  ": {kind: commandServe, write: true},

		// and of several words
		"sudo nix-daemon --stdio":                                  {kind: commandDaemon},
		"sudo -n -H /run/current-system/sw/bin/nix-daemon --stdio": {kind: commandDaemon},
		"doas nix-store --serve --write":                           {kind: commandServe, write: true},
		"env PATH=/nix/bin NIX_REMOTE=daemon nix-daemon --stdio":   {kind: commandDaemon},
		"/usr/bin/env -i nix-daemon --stdio":                       {kind: commandDaemon},
		"exec nix-daemon --stdio":                                  {kind: commandDaemon},
		"exec sudo env A=b nix-store --serve --write":              {kind: commandServe, write: true},
		"nix daemon --stdio":                                       {kind: commandDaemon},

		// blanks and quotes that a shell does not mind
		"nix-daemon  --stdio":           {kind: commandDaemon},
		" nix-daemon --stdio ":          {kind: commandDaemon},
		"'nix-daemon' '--stdio'":        {kind: commandDaemon},
		`"nix-store" "--serve" --write`: {kind: commandServe, write: true},
		`nix-daemon\ --stdio`:           {},
	} {
		got, err := parseCommand(text, policy.Commands{})
		if !sameCommand(got, want) || (err == nil) != (want.kind != commandUnknown) {
			t.Errorf("parseCommand(%q) = %+v, %v; want %+v", text, got, err, want)
		}
	}
}

func sameCommand(a, b command) bool {
	return a.kind == b.kind && a.write == b.write && slices.Equal(a.words, b.words)
}

// namingAStore are commands with the store parameter remote-store, as Nix quotes
// it or does not.
var namingAStore = map[string]command{
	"nix-daemon --stdio --store 'ssh-ng://elsewhere?a=b&c=d'":     {kind: commandDaemon}, // up to Nix 2.19
	"nix-daemon --stdio --store ssh-ng://elsewhere?a=b&c=d":       {kind: commandDaemon}, // since Nix 2.20
	"nix-daemon --stdio --store ssh-ng://elsewhere --process-ops": {kind: commandDaemon},
	"nix-daemon --stdio --process-ops --store ssh-ng://[::1]":     {kind: commandDaemon},
	"nix-daemon --stdio --store 'local?root=/a b'":                {kind: commandDaemon},
	"nix-daemon --stdio --store 'local?root=/a;b'":                {kind: commandDaemon},
	"nix-daemon --stdio --store=/x":                               {kind: commandDaemon},
	"nix-daemon --stdio --store":                                  {kind: commandDaemon},
	"nix-daemon --stdio --store /a b --process-ops":               {kind: commandDaemon}, // since Nix 2.20, a blank in it
	"nix-store --serve --write --store=/a b":                      {kind: commandServe, write: true},
	"nix-store --serve --write --store 'local?root=/x'":           {kind: commandServe, write: true},
	"nix-store --serve --write --store local?root=/x&trusted=1":   {kind: commandServe, write: true},
	"nix-store --serve --store=daemon":                            {kind: commandServe},
	"sudo nix-store --serve --store auto --write":                 {kind: commandServe, write: true},
}

// Guards against a command that is served from another store than it names, unless
// the admin wants that.
func TestAnotherStoreIsForThePolicy(t *testing.T) {
	for text, want := range namingAStore {
		if got, err := parseCommand(text, policy.Commands{}); !sameCommand(got, command{}) || !errors.Is(err, errRemoteStore) {
			t.Errorf("parseCommand(%q) = %+v, %v; want it refused", text, got, err)
		}
		if got, err := parseCommand(text, policy.Commands{RemoteStore: policy.RemoteStoreIgnore}); !sameCommand(got, want) || err != nil {
			t.Errorf("with remote_store: ignore, parseCommand(%q) = %+v, %v; want %+v", text, got, err, want)
		}
	}
}

// Guards against advice that does not name what is in the way, where a shell would
// do more with a URI than Nix meant.
func TestAnotherStoreIsNamedInTheRefusal(t *testing.T) {
	for _, uri := range []string{"local?root=/a;b", "local?root=$(x)", "'x", "a|b", "ä", "x --store y"} {
		for _, command := range []string{"nix-daemon --stdio --store ", "nix-store --serve --write --store=", "sudo nix-daemon --stdio --store "} {
			if _, err := parseCommand(command+uri, policy.Commands{}); !errors.Is(err, errRemoteStore) {
				t.Errorf("parseCommand(%q): %v", command+uri, err)
			}
		}
	}
}

// Guards against a policy that wants plain commands and gets others.
func TestAnotherProgramIsForThePolicy(t *testing.T) {
	plain := policy.Commands{PlainProgram: true}
	for _, text := range []string{
		"/opt/nix/bin/nix-daemon --stdio", "./nix-store --serve --write", "sudo nix-daemon --stdio", "env A=b nix-daemon --stdio", "nix daemon --stdio",
		"/x/nix-daemon --stdio --store y",
	} {
		if got, err := parseCommand(text, plain); got.kind != commandUnknown || !errors.Is(err, errRemoteProgram) {
			t.Errorf("parseCommand(%q) = %+v, %v; want it refused", text, got, err)
		}
	}
	for _, text := range []string{"nix-daemon --stdio", "nix-store --serve --write"} {
		if _, err := parseCommand(text, plain); err != nil {
			t.Errorf("parseCommand(%q): %v", text, err)
		}
	}
}

// Guards against users who are left alone with a refusal: nixos-rebuild copies the
// derivation here first, which works, and then runs these, over ssh.
func TestCommandsOfNixosRebuildAreRefusedWithAdvice(t *testing.T) {
	const drv = "/nix/store/g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-nixos-system-web.drv"
	const system = "/nix/store/g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-nixos-system-web-25.11"
	for _, text := range []string{
		// nixos-rebuild, with --build-host
		"uname -m",
		"nix-store -r " + drv + " --cores 4",
		"env PATH=/nix/store/x-nix/bin:$PATH nix-store -r " + drv,
		"sudo env PATH=/nix/store/x-nix/bin:$PATH nix-store -r " + drv,
		"nix-copy-closure --to root@web " + system,
		// and with --target-host
		"cat /proc/sys/kernel/hostname",
		"nix-env -p /nix/var/nix/profiles/system --set " + system,
		"sudo nix-env --rollback -p /nix/var/nix/profiles/system",
		"nix-env -p /nix/var/nix/profiles/system --list-generations",
		"systemd-run -E LOCALE_ARCHIVE -E NIXOS_INSTALL_BOOTLOADER= --collect --no-ask-password --pipe --quiet --service-type=exec --unit=nixos-rebuild-switch-to-configuration --wait true",
		"env -i LOCALE_ARCHIVE= NIXOS_INSTALL_BOOTLOADER= " + system + "/bin/switch-to-configuration switch",
		"test -f " + system + "/specialisation/x/bin/switch-to-configuration",
		// nixos-rebuild-ng
		"mktemp -d -t nixos-rebuild.XXXXX",
		"nix-store --realise " + drv + " --add-root /tmp/nixos-rebuild.abc/0f1e",
		"env -i PATH=${PATH-} nix-store --realise " + drv,
		"/bin/sh -c 'exec /usr/bin/env -i PATH=\"${PATH-}\" \"$@\"' sh nix-store --realise " + drv,
		"nix --extra-experimental-features 'nix-command flakes' build '" + drv + "^*' --print-out-paths",
		"readlink -f /tmp/nixos-rebuild.abc/0f1e",
		"rm -rf /tmp/nixos-rebuild.abc",
		"test -d /run/systemd/system",
		"test -w /nix/var/nix/profiles",
		"uname -n",
		"sudo --prompt= --stdin env -i LOCALE_ARCHIVE=x " + system + "/bin/switch-to-configuration test",
		"pkill --signal SIGINT --full -- nix\\-store\\ \\-\\-realise",
	} {
		if got, err := parseCommand(text, policy.Commands{}); got.kind != commandUnknown || !errors.Is(err, errNixosRebuild) {
			t.Errorf("parseCommand(%q) = %+v, %v; want the advice for nixos-rebuild", text, got, err)
		}
	}
	for _, text := range []string{
		"nix-store -qR /nix/store/x", "nix path-info /nix/store/x", "/opt/nix/bin/nix-store --delete /nix/store/x", "sudo nix-collect-garbage -d",
		"nix-build '<nixpkgs>' -A hello", "nix-store --realise; nix-store --gc",
	} {
		if got, err := parseCommand(text, policy.Commands{}); got.kind != commandUnknown || !errors.Is(err, errNixCommand) && !errors.Is(err, errNixosRebuild) {
			t.Errorf("parseCommand(%q) = %+v, %v; want the advice for Nix", text, got, err)
		}
	}
	for err, advice := range map[error]string{
		errNixosRebuild: "--builders", errNixCommand: "--store ssh-ng://HOST", errRemoteStore: "remove it", errRemoteProgram: "remove it",
		errUnknownCommand: "ssh HOST help",
	} {
		if !strings.Contains(err.Error(), advice) || strings.Contains(err.Error(), "\n") {
			t.Errorf("refusal %q is not one line with %q in it", err, advice)
		}
	}
}

// hostileCommands must not be taken for anything that is served.
var hostileCommands = []string{
	// nothing, and parts
	"", " ", "nix-daemon", "nix-daemon ", "--stdio", "nix", "nix-daemon stdio", "nix-daemon -stdio", "nix-daemon --stdi",
	"nix-daemon --stdioo", "nix-daemon --stdio=1", "nix-daemon-- stdio", "nix-daemon--stdio", "stdio nix-daemon",
	// other commands and other words
	"sh", "rm -rf /", "nix-daemon --daemon", "nix-daemon --force-trusted --stdio",
	"nix-daemon --stdio --force-trusted", "nix-daemon --stdio --stdio", "nix-daemon --stdio --process-ops --process-ops",
	"nix-daemon --stdio --option sandbox false", "nix-daemon --stdio -",
	"nix-store --realise /nix/store/x", "nix-store --serve --read", "nix-store --serve --write --write", "nix-store --serve --write x",
	"nix-store --serve; sh", "nix-store --serve --write; sh", "nix-store", "nix-copy-closure --to x",
	"sh -c 'nix-daemon --stdio'", "scp -t /tmp", "internal-sftp",
	// shells
	"nix-daemon --stdio; sh", "nix-daemon --stdio ;sh", "nix-daemon --stdio && id", "nix-daemon --stdio || id", "nix-daemon --stdio | sh",
	"nix-daemon --stdio &", "nix-daemon --stdio > /etc/passwd", "nix-daemon --stdio < /etc/shadow", "nix-daemon --stdio $(id)",
	"nix-daemon --stdio `id`", "nix-daemon --stdio #", "nix-daemon --stdio \\", "nix-daemon --stdio *", "nix-daemon --stdio {a,b}",
	"$(id)/nix-daemon --stdio", "`id`/nix-daemon --stdio", "$HOME/bin/nix-daemon --stdio", ";sh;/nix-daemon --stdio", "a|b/nix-daemon --stdio",
	"(nix-daemon --stdio)", "!nix-daemon --stdio", "x=1;nix-daemon --stdio",
	// quotes
	"'nix-daemon --stdio'",
	"nix-daemon --stdio ''", "nix-daemon --stdio '",
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
	// through what runs another command
	"sudo", "sudo -u root nix-daemon --stdio", "sudo sh -c 'nix-daemon --stdio'", "env", "env A=b", "exec", "exec exec", "doas -n",
	"sudo $(id) nix-daemon --stdio", "env A=$(id) nix-daemon --stdio", "env A=`id` nix-daemon --stdio", "exec >/etc/passwd nix-daemon --stdio",
	"bash -lc 'nix-daemon --stdio'", "sh -c nix-daemon --stdio", "/bin/sh -c 'x' sh nix-daemon --stdio", "ssh other nix-daemon --stdio",
	// through --store
	"nix-daemon --stdio --store x;sh", "nix-daemon --stdio --store x|sh", "nix-daemon --stdio --store x&&sh", "nix-daemon --stdio --store x&",
	"nix-daemon --stdio --store &x", "nix-daemon --stdio --store x &", "nix-daemon --stdio --store $(id)", "nix-daemon --stdio --store `id`",
	"nix-daemon --stdio --store \"$(id)\"", "nix-daemon --stdio --store 'x", "nix-daemon --stdio --store x --store y",
	"nix-daemon --stdio --store x\ny", "nix-daemon --stdio --store <x", "nix-store --serve --write --store x >y",
	// through probes
	"echo $(id)", "echo `id`", "echo $HOME", "echo x > /etc/passwd", "echo x; sh", "echo x | sh", "echo x && sh", "echo 'a", "echo -e '\\x1b[2J'", "echo \x1b[2J",
	"echo *", "echo ~root", "echo {a,b}", "echo a\nb", "echo a\tb", "echo \u202ea", "echo !x", "echo # x", "echo \"$(id)\"", "echo 'a*b'", "echo <(id)",
	"type", "type -a nix", "type nix-store; sh", "type nix-store && sh", "type $(id)", "type nix-store >/dev/null", "which", "which -a nix", "which `id`",
	"command", "command -v", "command nix-store", "command -V nix-store", "command -p sh", "command -v $(id)", "true; sh", "true x", "true && sh", "true\n", "false",
	"nix --version --json", "nix-store --version; sh", "/x/nix --version", "nix -v",
	// through questions
	"status; sh", "status `id`", "why $(id)", "why 'x", "check |sh", "help > x", "STATUS", "./status", "/bin/help", "status\x00", "statu\u0455",
}

// Guards against mistaking anything for a command of the table, and against
// refusals of several lines.
func TestEveryOtherCommandIsRefused(t *testing.T) {
	for _, allowed := range []policy.Commands{{}, {RemoteStore: policy.RemoteStoreIgnore}, {PlainProgram: true}} {
		for _, text := range hostileCommands {
			got, err := parseCommand(text, allowed)
			if got.kind != commandUnknown || err == nil {
				t.Errorf("with %+v, parseCommand(%.80q) = %+v, %v; want it refused", allowed, text, got, err)
			}
		}
	}
}

// Guards against a shell's work being done for a client: words are taken apart and
// nothing else.
func TestWordsAreWhatAShellSees(t *testing.T) {
	for text, want := range map[string][]string{
		"":                       nil,
		"  ":                     nil,
		"a b":                    {"a", "b"},
		" a  b ":                 {"a", "b"},
		"'a b' c":                {"a b", "c"},
		`"a b"c d`:               {"a bc", "d"},
		`a\ b \'c`:               {"a b", "'c"},
		"''":                     {""},
		"a '' b":                 {"a", "", "b"},
		"'$(id)' '`id`' '\"'":    {"$(id)", "`id`", `"`},
		`"it's"`:                 {"it's"},
		"x?a=b&c=d#e":            {"x?a=b&c=d#e"},
		"~/bin/nix":              {"~/bin/nix"},
		"ssh-ng://u@[::1]:22?x=": {"ssh-ng://u@[::1]:22?x="},
		`'a'\''b'`:               {"a'b"},
	} {
		if got, plain := splitWords(text); !plain || !slices.Equal(got, want) {
			t.Errorf("splitWords(%q) = %q, %t; want %q", text, got, plain, want)
		}
	}
	for _, text := range []string{
		"a;b", "a|b", "a&", "&a", "a & b", "a&&b", "a<b", "a>b", "a(b", "a)b", "$a", "a$b", "`a`", "a*", "{a}", "'a", "\"a", "\"$a\"", "\"`a`\"", "\"\\$a\"",
		"a\\", "#a", "a #b", "!a", "~a", "~", "a\nb", "a\tb", "a\x00", "a\x7f", "ä", "\xff", "'a\nb'",
	} {
		if got, plain := splitWords(text); plain {
			t.Errorf("splitWords(%q) = %q and plain", text, got)
		}
	}
}

// exactCommands are the forms that are served, after quotes are taken away.
var exactCommands = map[commandKind]*regexp.Regexp{
	commandDaemon: regexp.MustCompile(`\A(exec |(sudo|doas) (-\S* )*|(/usr/bin/)?env (-i |\S*=[^\n]* )*)*([A-Za-z0-9/._+@~=,:%-]*/)?(nix-daemon|nix daemon) --stdio( --process-ops| --store[= ]?[^\n]*)*\z`),
	commandServe:  regexp.MustCompile(`\A(exec |(sudo|doas) (-\S* )*|(/usr/bin/)?env (-i |\S*=[^\n]* )*)*([A-Za-z0-9/._+@~=,:%-]*/)?nix-store --serve( --write| --store[= ]?[^\n]*)*\z`),
	commandProbe:  regexp.MustCompile(`\A(true|echo( [^\n]*)?|type [^\n]+|which [^\n]+|command -v [^\n]+|(nix|nix-store|nix-daemon) --version)\z`),
	commandTalk:   regexp.MustCompile(`\A(status|why|check|help)( [^\n]*)?\z`),
}

// Guards against a form that nobody thought of.
func FuzzParseCommand(f *testing.F) {
	for _, seed := range []string{
		"nix-daemon --stdio", "/a/nix-daemon --stdio --process-ops", "nix-store --serve --write", "nix-daemon --stdio --store 'x'", "nix-daemon --stdio; sh", "\x00",
		"sudo -n env A=b exec nix-store --serve", "type nix-store", "echo a b", "why x86_64-linux kvm", "nix-store -r x",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseCommand(text, policy.Commands{RemoteStore: policy.RemoteStoreIgnore})
		if (err == nil) != (got.kind != commandUnknown) {
			t.Fatalf("parseCommand(%q) = %+v, %v", text, got, err)
		}
		if err != nil {
			return
		}
		words, plain := splitWords(text)
		if !plain || !exactCommands[got.kind].MatchString(strings.Join(words, " ")) {
			t.Fatalf("parseCommand(%q) = %+v, which is not of its form", text, got)
		}
		if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Fatalf("parseCommand(%q) = %+v with more than ASCII", text, got)
		}
	})
}
