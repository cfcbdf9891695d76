package main

import (
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"nixbastion": func() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) },
	})
}

// The command as a shell sees it: text, streams and exit statuses.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("PORT", freePort(t))
			env.Setenv("OTHERPORT", freePort(t))
			return os.WriteFile(filepath.Join(env.WorkDir, "builder-key"), privatePEM("client"), 0o600)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){"exits": exits, "appears": appears, "fill": fill, "until": until, "bincache": bincache, "damage": damage},
	})
}

// exits runs a command that must end with a status: exits 2 nixbastion check FILE.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS COMMAND ARG...")
	}
	got := 0
	err := ts.Exec(args[1], args[2:]...)
	var status *exec.ExitError
	switch {
	case errors.As(err, &status):
		got = status.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit status %d, expected %s", got, args[0])
	}
}

// appears waits for a file: appears FILE.
func appears(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: appears FILE")
	}
	file := ts.MkAbs(args[0])
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if _, err := os.Lstat(file); err == nil {
			return
		}
	}
	ts.Fatalf("there is no %s after 20 s", args[0])
}

// until runs a command again and again until it prints something: until REGEXP COMMAND ARG...
func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until REGEXP COMMAND ARG...")
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ts.Exec(args[1], args[2:]...) == nil && regexp.MustCompile(args[0]).MatchString(ts.ReadFile("stdout")) {
			return
		}
	}
	ts.Fatalf("%q did not print %s in 20 s", args[1:], args[0])
}

// fill writes the environment's variables into a file: fill FILE.
func fill(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: fill FILE")
	}
	text := os.Expand(ts.ReadFile(args[0]), ts.Getenv)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
}

// freePort is one on which nobody listens now.
func freePort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func noLeaks(t *testing.T) {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
}

// testSigner makes the same key of the same name.
func testSigner(name string) ssh.Signer {
	signer, err := ssh.NewSignerFromKey(privateKey(name))
	if err != nil {
		panic(err)
	}
	return signer
}

func privateKey(name string) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	copy(seed, name)
	return ed25519.NewKeyFromSeed(seed)
}

func privatePEM(name string) []byte {
	block, err := ssh.MarshalPrivateKey(privateKey(name), "")
	if err != nil {
		panic(err)
	}
	return pem.EncodeToMemory(block)
}
